from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

Arrays = dict[str, np.ndarray]


@pytest.fixture(scope="session")
def trajectories(golden: Path, run_ranks: Callable[..., None], tmp_path_factory: pytest.TempPathFactory) -> dict[int, Arrays]:
    """Results of trajectory.py with one and with two processes."""
    found = {}
    for size in (1, 2):
        folder = tmp_path_factory.mktemp(f"ranks{size}")
        run_ranks(Path(__file__).parent / "trajectory.py", size, folder, golden)
        with np.load(folder / "out.npz") as arrays:
            found[size] = dict(arrays)
    return found
