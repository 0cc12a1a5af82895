"""Embeds on a Ray cluster: actors of a Ray Data pipeline make the parts that are missing, on CPUs or on GPUs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import pyarrow as pa
import ray
import ray.data

from swav_platform.cluster import session
from swav_platform.cluster.signals import own_signals
from swav_platform.data.sets.layout import PartReport
from swav_platform.errors import UserError
from swav_platform.evaluation.embed import Runner
from swav_platform.evaluation.parts import EmbedJob, PartMaker
from swav_platform.failures import LogWaits, Tell, Wait

_POLL = 1.0  # seconds between two looks at the board
_DEATHS = 3  # of one actor, or of the actors of one part: a part that always kills them must not run for ever


@ray.remote(num_cpus=0)
class Board:
    """Where actors tell how many samples they have encoded and what they wait for."""

    def __init__(self) -> None:
        self._samples, self._waits = 0, dict[int, tuple[float, Wait]]()

    def add(self, samples: int) -> None:
        self._samples += samples

    def tell_wait(self, part: int, wait: Wait | None) -> None:
        if wait is None:
            self._waits.pop(part, None)
        else:
            self._waits[part] = time.monotonic(), wait

    def look(self) -> tuple[int, Wait | None]:
        """Samples encoded so far, and the longest wait."""
        now = time.monotonic()
        waits = [replace(wait, seconds=wait.seconds + now - told) for told, wait in self._waits.values()]
        return self._samples, max(waits, key=lambda wait: wait.seconds, default=None)


class PartActor:
    """A `PartMaker` in a process of its own, which lives as long as the pipeline."""

    def __init__(self, job: EmbedJob, board: Any, threads: int, device: str) -> None:
        import torch

        torch.set_num_threads(threads)
        self._maker, self._board = PartMaker(job, device=device, threads=threads, runtime_threads=threads), board

    def __call__(self, work: pa.Table) -> pa.Table:
        [number] = work["part"].to_pylist()
        report = self._maker.make(number, self._board.add.remote, partial(self._board.tell_wait.remote, number))
        return pa.table({"part": [number], "report": [report.json()]})


def on_cluster(workers: int | None = None, tell: Tell | None = None) -> Runner:
    """A runner that uses RAY_ADDRESS, or a local Ray. workers: actors; by default one for each GPU, else one for each CPU.

    All nodes must see the places of the job. tell: hears what actors wait for.
    """

    def run(job: EmbedJob, numbers: list[int], done: Callable[[int], None]) -> Iterator[tuple[int, PartReport]]:
        with session.ray_session(workers), own_signals():
            yield from _run(job, numbers, done, workers, tell or LogWaits())

    return run


def _run(
    job: EmbedJob, numbers: list[int], done: Callable[[int], None], workers: int | None, tell: Tell
) -> Iterator[tuple[int, PartReport]]:
    resources = session.cluster_resources()
    gpus, cpus = int(resources.get("GPU", 0)), max(1, int(resources.get("CPU", 1)))
    count = min(workers or gpus or cpus, len(numbers), gpus or cpus)
    threads = max(1, cpus // count) if gpus else 1
    board = Board.remote()  # type: ignore[attr-defined]
    with _watched(board, done, tell):
        try:
            for row in _dataset(job, numbers, board, count, threads, bool(gpus)).iter_rows():
                yield int(row["part"]), PartReport.read(row["report"])
        except ray.exceptions.RayTaskError as error:
            cause = error.cause
            raise (cause if isinstance(cause, UserError) else error) from None
        except ray.exceptions.ActorDiedError as error:
            raise UserError(
                f"The processes that embed died {_DEATHS + 1} times, perhaps for want of memory ({str(error).splitlines()[0]}). "
                f"Use fewer with --workers; then run the same command again, which goes on where it stopped."
            ) from error


def _dataset(job: EmbedJob, numbers: list[int], board: Any, count: int, threads: int, gpu: bool) -> ray.data.Dataset:
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.raise_original_map_exception = True  # a UserError of an actor must reach the user
    return ray.data.from_items([{"part": number} for number in numbers], override_num_blocks=len(numbers)).map_batches(
        PartActor,
        fn_constructor_kwargs={"job": job, "board": board, "threads": threads, "device": "cuda" if gpu else "cpu"},
        batch_size=1,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=count, max_tasks_in_flight_per_actor=2),
        num_cpus=threads if gpu else 1,
        num_gpus=1 if gpu else None,
        max_restarts=_DEATHS,
        max_task_retries=_DEATHS,
    )


class _watched:
    """While the block runs, a thread passes on what the board says."""

    def __init__(self, board: Any, done: Callable[[int], None], tell: Tell) -> None:
        self._board, self._done, self._tell = board, done, tell
        self._ended = threading.Event()
        self._seen, self._waiting = 0, False
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(_POLL):
            self._look()
        self._look()

    def _look(self) -> None:
        try:
            samples, wait = ray.get(self._board.look.remote(), timeout=10 * _POLL)
        except (ray.exceptions.RayError, ConnectionError):
            return  # the pipeline reports what is wrong
        self._done(samples - self._seen)
        self._seen = samples
        if wait is not None or self._waiting:
            self._tell(wait)
        self._waiting = wait is not None
