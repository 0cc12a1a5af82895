from __future__ import annotations

import importlib.util
import shutil
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor


class ThreadComm:
    """A rank that is a thread. Its collectives exchange tensors with the other threads."""

    def __init__(self, rank: int, size: int, meeting: threading.Barrier, given: list[Any]) -> None:
        self.rank, self.size, self.meeting, self.given = rank, size, meeting, given
        self.calls: Counter[str] = Counter()

    def sum(self, x: Tensor) -> Tensor:
        return torch.stack(self._meet("sum", x)).sum(0)

    def max(self, x: Tensor) -> Tensor:
        return torch.stack(self._meet("max", x)).amax(0)

    def gather_in_order(self, x: Tensor) -> Tensor:
        return torch.cat(self._meet("gather", x))

    def _meet(self, kind: str, x: Tensor) -> list[Tensor]:
        self.calls[kind] += 1
        self.given[self.rank] = x.clone()
        self.meeting.wait(60)
        everyone = list(self.given)
        self.meeting.wait(60)
        return everyone


@pytest.fixture(scope="session")
def together() -> Callable[..., list[Any]]:
    """together(size, work): runs work(comm) of all ranks concurrently and returns their results in rank order."""

    def run(size: int, work: Callable[[ThreadComm], Any]) -> list[Any]:
        meeting, given = threading.Barrier(size), [None] * size

        def one(rank: int) -> Any:
            try:
                return work(ThreadComm(rank, size, meeting, given))
            except BaseException:
                meeting.abort()  # otherwise the other ranks wait for this one
                raise

        with ThreadPoolExecutor(size) as pool:
            return list(pool.map(one, range(size)))

    return run


@pytest.fixture(scope="session")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("methods_ranks", Path(__file__).parent / "ranks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def runs(run_ranks: Callable[..., None], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """run(size): folder of the runs of `size` processes, made once per session. Three processes also resume runs of one."""
    done: dict[int, Path] = {}

    def run(size: int) -> Path:
        if size not in done:
            folder = done[size] = tmp_path_factory.mktemp(f"methods{size}")
            if size == 3:
                shutil.copytree(run(1), folder / "alone")
            run_ranks(Path(__file__).parent / "ranks.py", size, folder)
        return done[size]

    return run
