"""Micro-batches: images of different requests share a forward pass."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

from services.embeddings.errors import busy

X = TypeVar("X")
Y = TypeVar("Y")


class Batcher(Generic[X, Y]):
    """Calls `run` with up to `max_batch` items at a time, in `executor`, one call after another.

    The first item of a batch waits at most `max_wait` seconds for more. `run` returns one result per item. If it
    raises, every item of that batch gets the exception, and the next batch is processed as usual.
    The caller limits the number of queued items.
    """

    def __init__(
        self, run: Callable[[Sequence[X]], Sequence[Y]], *, max_batch: int, max_wait: float, executor: ThreadPoolExecutor
    ) -> None:
        self._run = run
        self.max_batch = max_batch
        self._max_wait = max_wait
        self._executor = executor
        self._queue: asyncio.Queue[tuple[X, asyncio.Future[Y]]] = asyncio.Queue()
        self._batch: list[tuple[X, asyncio.Future[Y]]] = []
        self._task: asyncio.Task[None] | None = None

    @property
    def running(self) -> bool:
        return self._task is not None and not self._task.done()

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._work())

    async def stop(self) -> None:
        """Stops processing. Queued items fail with a ServiceError."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        while not self._queue.empty():
            self._batch.append(self._queue.get_nowait())
        for _, future in self._batch:
            if not future.done():
                future.set_exception(busy("it is shutting down"))
        self._batch, self._task = [], None
        del self._run  # it may own this object: a replaced model is freed now, not when the collector of cycles comes round

    async def submit(self, item: X) -> Y:
        if not self.running:
            raise busy("it is shutting down")
        future: asyncio.Future[Y] = asyncio.get_running_loop().create_future()
        self._queue.put_nowait((item, future))
        return await future

    async def _work(self) -> None:
        while True:
            await self._collect()
            batch = [(item, future) for item, future in self._batch if not future.done()]
            if not batch:
                continue
            try:
                results = await asyncio.get_running_loop().run_in_executor(self._executor, self._run, [item for item, _ in batch])
            except Exception as error:
                for _, future in batch:
                    if not future.done():
                        future.set_exception(error)
            else:
                for (_, future), result in zip(batch, results, strict=True):
                    if not future.done():
                        future.set_result(result)

    async def _collect(self) -> None:
        self._batch = [await self._queue.get()]
        deadline = asyncio.get_running_loop().time() + self._max_wait
        while len(self._batch) < self.max_batch:
            try:
                async with asyncio.timeout_at(deadline):  # an item that is queued already is taken even after the deadline
                    self._batch.append(await self._queue.get())
            except TimeoutError:
                break
