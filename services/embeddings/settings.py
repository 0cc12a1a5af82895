"""Settings of the service. Imports nothing heavy, so that the command line and tests can build them quickly."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

MIB = 2**20


@dataclass(frozen=True)
class Limits:
    """Limits of one request, and of all requests together. Exceeding one is a client error (4xx), or 503."""

    max_bytes: int = 20 * MIB  # of one image
    max_pixels: int = 64_000_000  # of one image, from its header
    max_items: int = 64  # images in one request
    max_body: int = 128 * MIB  # bytes of one request
    max_held: int = 512 * MIB  # bytes of all request bodies in memory
    max_pending: int = 256  # images queued or in progress


@dataclass(frozen=True)
class ServiceSettings:
    """A model package, and the run's embeddings for cluster members and neighbours."""

    model: Path
    embeddings: Path | None = None  # folder with embeddings.parquet
    host: str = "127.0.0.1"
    port: int = 8000  # 0: any free port
    limits: Limits = field(default_factory=Limits)
    threads: int | None = None  # torch threads; None: torch's default
    decoders: int = 2  # decoding threads
    max_batch: int = 32  # images in one forward pass
    keys: Path | None = None  # file of API keys; None: those of SWAV_API_KEYS, else no keys are asked for
    max_wait: float = 0.003  # seconds that the first image of a batch waits for more
