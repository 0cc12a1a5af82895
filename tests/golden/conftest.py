from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

Arrays = dict[str, np.ndarray]


@pytest.fixture(scope="session")
def trajectories(root: Path, golden: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Arrays]:
    """What trajectory.py finds with one and with two processes."""
    return {size: _run(root, golden, size, tmp_path_factory.mktemp(f"ranks{size}")) for size in (1, 2)}


def _run(root: Path, golden: Path, size: int, folder: Path) -> Arrays:
    script, out = Path(__file__).parent / "trajectory.py", folder / "out.npz"
    command = [sys.executable, str(script), str(golden)]
    environment = os.environ | {"PYTHONPATH": str(root)}
    rest = [str(size), str(folder / "store"), str(out)]
    ranks = [subprocess.Popen([*command, str(r), *rest], env=environment) for r in range(size)]
    try:
        assert [rank.wait(timeout=300) for rank in ranks] == [0] * size
    finally:
        for rank in ranks:
            rank.kill()
    with np.load(out) as found:
        return dict(found)
