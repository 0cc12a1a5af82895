"""Turns bytes into vectors: a pool of decoding threads and micro-batches through the model, at the same time."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

import numpy as np
import torch

from services.embeddings.admission import Admission
from services.embeddings.batching import Batcher
from services.embeddings.cache import Cache
from services.embeddings.errors import INTERNAL, Fault, image_fault
from services.embeddings.metrics import Metrics
from services.embeddings.settings import ServiceSettings
from swav_platform.config import ImagePolicy
from swav_platform.data.ledger.outcomes import Outcome
from swav_platform.errors import UserError
from swav_platform.images.decoding.decode import decode
from swav_platform.images.decoding.refused import Refused
from swav_platform.malloc import give_back_freed
from swav_platform.models.inference import Encoded, InferenceModel
from swav_platform.models.reference import probe
from swav_platform.models.runtimes.runtime import PARITY, cosines

log = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")

LATENCY = 0.03  # seconds: batches that take less are made larger, up to max_batch
NEARLY = 0.93  # of the highest throughput: the smallest batch that reaches it is used
LARGE = 48 * 2**20  # bytes of pixels: malloc would keep the pages of larger images, Pillow's copies among them
WARM_UP = 2.0  # seconds to find it
AT_ONCE = {"int8": 2}
"""Batches that a runtime encodes at once: the operations of int8 are so short that its threads mostly wait for each other."""


@dataclass(frozen=True)
class Rooms:
    """What the engines of all models of a process share."""

    settings: ServiceSettings
    metrics: Metrics
    admission: Admission
    decoders: ThreadPoolExecutor
    searchers: ThreadPoolExecutor


class Decoded:
    """Normalised pixels float32 [3, size, size] on the way to the model."""

    def __init__(self, pixels: np.ndarray, key: bytes) -> None:
        self.pixels = pixels
        self.key = key
        self.since = time.perf_counter()


class Engine:
    """Encodes images with one model. Belongs to one event loop, from `start` to `stop`."""

    def __init__(self, model: InferenceModel, rooms: Rooms) -> None:
        settings = rooms.settings
        self._model = model
        self._rooms = rooms
        self._metrics = rooms.metrics
        self._policy = ImagePolicy(max_bytes=settings.limits.max_bytes, max_pixels=settings.limits.max_pixels)
        self._cache = Cache(settings.cache_bytes)
        parallel = AT_ONCE.get(model.runtime.name, 1)
        self._torch = ThreadPoolExecutor(
            parallel, thread_name_prefix="model", initializer=_set_threads, initargs=(settings.threads,)
        )
        self._batcher: Batcher[Decoded, Encoded] = Batcher(
            self._forward, max_batch=settings.max_batch, max_wait=settings.max_wait, executor=self._torch, parallel=parallel
        )
        self._canary: np.ndarray | None = None  # features of the probe images when the engine started
        self.busy = 0  # requests in progress

    @property
    def ready(self) -> bool:
        return self._batcher.running

    async def start(self) -> None:
        """Starts processing. Runs the model on batches of each size first, and keeps the smallest that is nearly the fastest.

        Raises UserError if the model's vectors of the probe images are not finite.
        """
        loop = asyncio.get_running_loop()
        images = probe(self._model.input_size)
        found = await loop.run_in_executor(self._torch, self._encode_array, images)
        if not (np.isfinite(found.features).all() and np.isfinite(found.projections).all()):
            raise UserError(f"The model {self._model.name} ({self._model.digest}) computes vectors that are not finite.")
        self._canary = found.features
        self._batcher.max_batch, rate = await loop.run_in_executor(self._torch, self._best_batch, images)
        self._rooms.admission.rate = rate
        self._batcher.start()
        await self.check()

    async def check(self) -> None:
        """Encodes an image on the way that requests take. Raises UserError if the vector is another than at the start."""
        assert self._canary is not None
        image = probe(self._model.input_size)[0]
        found = await self._batcher.submit(Decoded(image, b""))
        if cosines(found.features[None], self._canary[:1])[0] < PARITY[self._model.runtime.precision]:
            raise UserError("a test image has another vector than when the model was loaded")

    async def stop(self) -> None:
        await self._batcher.stop()
        self._torch.shutdown(wait=False, cancel_futures=True)

    async def encode(self, images: Sequence[bytes]) -> list[Encoded | Fault]:
        """Vectors or a fault for each image. Raises ServiceError 503 if too many images are pending."""
        with self._rooms.admission.admitted(len(images)):
            self.busy += 1
            try:
                return list(await asyncio.gather(*(self._encode(data) for data in images)))
            finally:
                self.busy -= 1

    async def search(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Runs a search in a thread. Raises ServiceError 503 if too many searches are pending."""
        with self._rooms.admission.searching():
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._rooms.searchers, lambda: function(*args, **kwargs))

    async def _encode(self, data: bytes) -> Encoded | Fault:
        loaded = await asyncio.get_running_loop().run_in_executor(self._rooms.decoders, self._load, data)
        result = loaded
        if isinstance(loaded, Decoded):
            result = await self._batcher.submit(loaded)
            if np.isfinite(result.features).all():
                self._cache.put(loaded.key, result)
            else:
                result = INTERNAL
                log.error("the model %s computed a vector that is not finite", self._model.digest)
        self._metrics.images.labels(result.code if isinstance(result, Fault) else Outcome.OK.word).inc()
        return result  # type: ignore[return-value]  # no Decoded any more

    def _load(self, data: bytes) -> Decoded | Encoded | Fault:
        key = Cache.key(data)
        if (known := self._cache.get(key)) is not None:
            self._metrics.cache_hits.inc()
            return known
        try:
            with self._metrics.decode.time():
                image = decode(data, self._policy)
                decoded, size = Decoded(self._model.preprocess(image).numpy(), key), image.nbytes
            del image
            if size > LARGE:
                give_back_freed()
            return decoded
        except Refused as refused:
            return image_fault(refused.outcome, refused.detail)
        except MemoryError:
            return image_fault(Outcome.DECODE_MEMORY, "not enough memory to decode it")
        except Exception:  # one image must not fail the other images of its request
            log.exception("unexpected error while decoding an image")
            return INTERNAL

    def _forward(self, images: Sequence[Decoded]) -> list[Encoded]:
        started = time.perf_counter()
        for image in images:
            self._metrics.queue.observe(started - image.since)
        found = self._encode_array(np.stack([image.pixels for image in images]))
        seconds = time.perf_counter() - started
        self._metrics.batch.observe(len(images))
        self._metrics.encode.observe(seconds)
        self._rooms.admission.encoded(len(images), seconds)
        return [Encoded(*(vector.copy() for vector in vectors)) for vectors in zip(*found, strict=True)]

    def _encode_array(self, images: np.ndarray) -> Encoded:
        return self._model.encode(torch.from_numpy(images))

    def _best_batch(self, images: np.ndarray) -> tuple[int, float]:
        """The batch size to use, and the images per second that it reaches."""
        rates: dict[int, float] = {}
        size, end = 1, time.perf_counter() + WARM_UP
        most = self._batcher.max_batch
        while size <= most and time.perf_counter() < end:
            batch = np.concatenate([images] * -(-size // len(images)))[:size]
            best = float("inf")
            for _ in range(2):
                started = time.perf_counter()
                self._encode_array(batch)
                best = min(best, time.perf_counter() - started)
            rates[size] = size / best
            size = 2 * size if 2 * size <= most or size == most else most
        highest = max(rates.values())
        chosen = min(size for size, rate in rates.items() if rate >= NEARLY * highest)
        while chosen < most and chosen / highest < LATENCY:
            chosen = min(2 * chosen, most)
        return chosen, highest


def _set_threads(threads: int | None) -> None:
    if threads is not None:
        torch.set_num_threads(threads)
