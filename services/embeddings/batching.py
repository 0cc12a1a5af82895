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
    """Calls `run` with up to `max_batch` items at a time, in `executor`, with at most `parallel` calls at once.

    The first item of a batch waits at most `max_wait` seconds for more. `run` returns one result per item. If it
    raises, every item of that batch gets the exception, and the next batch is processed as usual.
    The caller limits the number of queued items.
    """

    def __init__(
        self,
        run: Callable[[Sequence[X]], Sequence[Y]],
        *,
        max_batch: int,
        max_wait: float,
        executor: ThreadPoolExecutor,
        parallel: int = 1,
    ) -> None:
        self._run = run
        self.max_batch = max_batch
        self._max_wait = max_wait
        self._executor = executor
        self._queue: asyncio.Queue[tuple[X, asyncio.Future[Y]]] = asyncio.Queue()
        self._parallel = parallel
        self._collecting = asyncio.Lock()  # one at a time: two that collect would share the waiting items
        self._taken: set[asyncio.Future[Y]] = set()  # of items in a batch
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def running(self) -> bool:
        return bool(self._tasks) and not any(task.done() for task in self._tasks)

    def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self._work()) for _ in range(self._parallel)]

    async def stop(self) -> None:
        """Stops processing. Queued items fail with a ServiceError."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        while not self._queue.empty():
            self._taken.add(self._queue.get_nowait()[1])
        for future in self._taken:
            if not future.done():
                future.set_exception(busy("it is shutting down"))
        self._taken, self._tasks = set(), []
        del self._run  # it may own this object: a replaced model is freed now, not when the collector of cycles comes round

    async def submit(self, item: X) -> Y:
        if not self.running:
            raise busy("it is shutting down")
        future: asyncio.Future[Y] = asyncio.get_running_loop().create_future()
        self._queue.put_nowait((item, future))
        return await future

    async def _work(self) -> None:
        while True:
            async with self._collecting:
                collected = await self._collect()
            batch = [(item, future) for item, future in collected if not future.done()]
            if batch:
                await self._process(batch)
            self._taken.difference_update(future for _, future in collected)

    async def _process(self, batch: Sequence[tuple[X, asyncio.Future[Y]]]) -> None:
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

    async def _collect(self) -> list[tuple[X, asyncio.Future[Y]]]:
        batch = [await self._next()]
        deadline = asyncio.get_running_loop().time() + self._max_wait
        while len(batch) < self.max_batch:
            try:
                async with asyncio.timeout_at(deadline):  # an item that is queued already is taken even after the deadline
                    batch.append(await self._next())
            except TimeoutError:
                break
        return batch

    async def _next(self) -> tuple[X, asyncio.Future[Y]]:
        item, future = await self._queue.get()
        self._taken.add(future)
        return item, future
