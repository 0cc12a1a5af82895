"""Prometheus metrics of the service."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from starlette.types import ASGIApp, Message, Receive, Scope, Send

SHARED = "PROMETHEUS_MULTIPROC_DIR"
"""Variable of prometheus_client: the folder in which several processes count together. Set before it is imported."""

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


@dataclass(frozen=True)
class Metrics:
    registry: CollectorRegistry
    requests: Counter
    seconds: Histogram
    images: Counter
    batch: Histogram
    decode: Histogram
    queue: Histogram
    encode: Histogram
    cache_hits: Counter
    refusals: Counter
    swaps: Counter
    queued: Gauge
    models: Gauge


def make_metrics() -> Metrics:
    """Creates a registry for each app, so that two apps in one process do not share counters."""
    registry = CollectorRegistry()
    if SHARED in os.environ:
        _forget_dead(Path(os.environ[SHARED]))
    else:
        ProcessCollector(registry=registry)
    return Metrics(
        registry=registry,
        requests=Counter("swav_service_requests_total", "Requests served", ["route", "code"], registry=registry),
        seconds=Histogram("swav_service_request_seconds", "Time to the last byte", ["route"], buckets=SECONDS, registry=registry),
        images=Counter("swav_service_images_total", "Images by outcome", ["outcome"], registry=registry),
        batch=Histogram(
            "swav_service_batch_images", "Images in one forward pass", buckets=(1, 2, 4, 8, 16, 32, 64), registry=registry
        ),
        decode=_seconds("decode", "Decoding, resizing and normalising an image", registry),
        queue=_seconds("queue", "Wait of a decoded image for its batch", registry),
        encode=_seconds("encode", "A forward pass", registry),
        cache_hits=Counter("swav_service_cache_hits_total", "Images whose vectors were known", registry=registry),
        refusals=Counter("swav_service_refusals_total", "Refused requests by reason", ["reason"], registry=registry),
        swaps=Counter(
            "swav_service_swaps_total", "Models loaded while running, by result", ["model", "result"], registry=registry
        ),
        queued=Gauge(
            "swav_service_pending_images", "Images queued or in progress", registry=registry, multiprocess_mode="livesum"
        ),
        models=Gauge(
            "swav_service_model_info",
            "Models that answer",
            ["model", "digest", "runtime"],
            registry=registry,
            multiprocess_mode="livemax",
        ),
    )


def latest(metrics: Metrics) -> bytes:
    """The metrics in Prometheus's text format: those of all workers, if there are several."""
    if SHARED not in os.environ:
        return generate_latest(metrics.registry)
    registry = CollectorRegistry()
    MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return generate_latest(registry)


def forget(gauge: Gauge, labels: tuple[str, ...]) -> None:
    """Takes a series away; it becomes 0 where several processes count together, which knows no removal."""
    gauge.labels(*labels).set(0)
    if SHARED not in os.environ:
        gauge.remove(*labels)


def _forget_dead(folder: Path) -> None:
    """Takes the gauges of workers that have ended out of the sums. Their counters stay."""
    for path in folder.glob("gauge_live*_*.db"):
        number = int(path.stem.rpartition("_")[2])
        if not psutil.pid_exists(number):
            mark_process_dead(number)  # type: ignore[no-untyped-call]


def _seconds(stage: str, text: str, registry: CollectorRegistry) -> Histogram:
    return Histogram(f"swav_service_{stage}_seconds", text, buckets=SECONDS, registry=registry)


class Measured:
    """ASGI middleware that counts and times requests by route template, which bounds the number of label values."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status = 500  # sent by the layer above if this one sends nothing

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        started = time.perf_counter()
        try:
            await self.app(scope, receive, watched)
        finally:
            route = getattr(scope.get("route"), "path_format", "unmatched")
            self.metrics.requests.labels(route, str(status)).inc()
            self.metrics.seconds.labels(route).observe(time.perf_counter() - started)
