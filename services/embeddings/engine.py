"""Turns bytes into vectors: decoding threads, then micro-batches through the model, with a limit on pending images."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch
from torch import Tensor

from services.embeddings.batching import Batcher
from services.embeddings.errors import INTERNAL, Fault, busy, image_fault
from services.embeddings.metrics import Metrics
from services.embeddings.settings import ServiceSettings
from swav_platform.config import ImagePolicy
from swav_platform.data.ledger.outcomes import Outcome
from swav_platform.images.decoding.decode import decode
from swav_platform.images.decoding.refused import Refused
from swav_platform.models.inference import Encoded, InferenceModel

log = logging.getLogger(__name__)


class Engine:
    """Encodes images. Belongs to one event loop, from `start` to `stop`."""

    def __init__(self, model: InferenceModel, settings: ServiceSettings, metrics: Metrics) -> None:
        self._model = model
        self._metrics = metrics
        self._threads = settings.threads
        self._policy = ImagePolicy(max_bytes=settings.limits.max_bytes, max_pixels=settings.limits.max_pixels)
        self._max_pending = settings.limits.max_pending
        self._pending = 0
        self._decoders = ThreadPoolExecutor(settings.decoders, thread_name_prefix="decode")
        self._torch = ThreadPoolExecutor(1, thread_name_prefix="model", initializer=self._set_threads)
        self._batcher: Batcher[Tensor, Encoded] = Batcher(
            self._forward, max_batch=settings.max_batch, max_wait=settings.max_wait, executor=self._torch
        )

    @property
    def ready(self) -> bool:
        return self._batcher.running

    async def start(self) -> None:
        """Starts processing, and runs the model once so that the first request is not slow."""
        self._batcher.start()
        size = self._model.input_size
        await self._batcher.submit(torch.zeros(3, size, size))

    async def stop(self) -> None:
        await self._batcher.stop()
        self._decoders.shutdown(wait=False, cancel_futures=True)
        self._torch.shutdown(wait=False, cancel_futures=True)

    async def encode(self, images: Sequence[bytes]) -> list[Encoded | Fault]:
        """Vectors or a fault for each image. Raises ServiceError 503 if too many images are pending."""
        with self._admitted(len(images)):
            return list(await asyncio.gather(*(self._encode(data) for data in images)))

    @contextmanager
    def _admitted(self, count: int) -> Iterator[None]:
        if self._pending + count > self._max_pending:
            raise busy(f"{self._pending} images are pending")
        self._pending += count
        try:
            yield
        finally:
            self._pending -= count

    async def _encode(self, data: bytes) -> Encoded | Fault:
        loaded = await asyncio.get_running_loop().run_in_executor(self._decoders, self._load, data)
        result = loaded if isinstance(loaded, Fault) else await self._batcher.submit(loaded)
        self._metrics.images.labels(result.code if isinstance(result, Fault) else Outcome.OK.word).inc()
        return result

    def _load(self, data: bytes) -> Tensor | Fault:
        try:
            return self._model.preprocess(decode(data, self._policy))
        except Refused as refused:
            return image_fault(refused.outcome, refused.detail)
        except MemoryError:
            return image_fault(Outcome.DECODE_MEMORY, "not enough memory to decode it")
        except Exception:  # one image must not fail the other images of its request
            log.exception("unexpected error while decoding an image")
            return INTERNAL

    def _forward(self, images: Sequence[Tensor]) -> list[Encoded]:
        self._metrics.batch.observe(len(images))
        found = self._model.encode(torch.stack(list(images)))
        return [Encoded(*vectors) for vectors in zip(*found, strict=True)]

    def _set_threads(self) -> None:
        if self._threads is not None:
            torch.set_num_threads(self._threads)
