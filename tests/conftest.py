"""What every test may ask for."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.makers import encoded, write_tar
from tests.s3 import S3Server

ROOT = Path(__file__).resolve().parents[1]
RAY_ROOMS = ("cluster", "stack")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What starts Ray comes first: it takes longest, and one process has to do all of it. The longest tests are optional."""
    for item in items:
        if item.get_closest_marker("long") and "SWAV_LONG_TESTS" not in os.environ:
            item.add_marker(pytest.mark.skip(reason="takes minutes; set SWAV_LONG_TESTS"))
    items.sort(key=lambda item: item.path.parent.name not in RAY_ROOMS)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Deals tests to several processes (`make test`): a file goes to one process, and all files that start Ray go to the same.

    Two Rays that start at one time want the same ports and wait for each other.
    """
    from xdist.scheduler import LoadFileScheduling

    class ByFile(LoadFileScheduling):  # type: ignore[misc]  # xdist has no annotations
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return "ray" if Path(file).parent.name in RAY_ROOMS else file

    return ByFile(config, log) if config.getoption("dist") == "loadfile" else None


@pytest.fixture(scope="session")
def root() -> Path:
    """The project's folder."""
    return ROOT


@pytest.fixture(scope="session")
def run_ranks(root: Path) -> Callable[..., None]:
    """run_ranks(script, size, folder, *more): so many processes `script RANK SIZE STORE FOLDER *more`, to their end."""

    def run(script: Path, size: int, folder: Path, *more: object) -> None:
        environment = os.environ | {"PYTHONPATH": str(root)}
        rest = [str(part) for part in (size, folder / "store", folder, *more)]
        processes = [subprocess.Popen([sys.executable, str(script), str(rank), *rest], env=environment) for rank in range(size)]
        try:
            assert [process.wait(timeout=900) for process in processes] == [0] * size
        finally:
            for process in processes:
                process.kill()

    return run


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder with real images and golden values, kept beside the project; tests that need it skip without it."""
    path = ROOT.parent / "shared"
    if not path.is_dir():
        pytest.skip("no ../shared beside the project")
    return path


@pytest.fixture(scope="session")
def golden(shared: Path) -> Path:
    """Numbers produced by the published code."""
    return shared / "golden"


def picture(rng: np.random.Generator, hue: int, side: int = 40) -> bytes:
    """JPEG of a soft pattern whose colour tells its group."""
    rough = rng.integers(0, 256, (6, 6, 3)).astype(np.uint8)
    rough[..., hue % 3] = 255 * (hue > 2)
    return encoded(Image.fromarray(rough).resize((side, side + 8), Image.Resampling.BICUBIC), quality=90)


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of two shards with 80 pictures each; keys `<group>/<number>`, four groups."""
    folder = tmp_path_factory.mktemp("shards")
    rng = np.random.default_rng(0)
    for number in range(2):
        files = [(f"group{i % 4}/{number}-{i:03d}.jpg", picture(rng, i % 4)) for i in range(80)]
        write_tar(folder / f"pictures-{number:06d}.tar", files)
    return folder


TINY = [
    "views.large.size=16",
    "views.small.size=8",
    "views.small.count=2",
    "model.name=resnet_tiny",
    "model.stem=small",
    "model.stem_stride=2",
    "model.projection_hidden=32",
    "model.projection_dim=16",
    "method.prototypes=12",
    "method.freeze_prototypes=2",
    "data.row_size=8",
    "data.segment=16",
    "data.window=2",
    "train.batch=32",
    "train.steps=8",
    "train.checkpoint_every=2",
    "train.log_every=2",
    "train.threads=1",
    "train.optimiser.name=adamw",
    "train.optimiser.lr=1e-3",
    "train.optimiser.warmup_steps=2",
    "train.optimiser.start_lr=0",
    "train.optimiser.final_lr=0",
]


@pytest.fixture(scope="session")
def tiny() -> list[str]:
    """Overrides that make a recipe small enough for a test: 8 steps of 4 rows of 8 positions."""
    return list(TINY)


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """One local Ray for all tests of this process that need it."""
    import ray

    from swav_platform.cluster import session

    for name, value in session.SETTINGS.items():
        os.environ.setdefault(name, value)
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """One S3 server for all tests of this process that need it. Use buckets of your own."""
    server = S3Server(tmp_path_factory.mktemp("s3"))
    try:
        yield server.start()
    finally:
        server.close()


@pytest.fixture
def s3(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """The server, with the environment that clients need. A test may stop it or revoke its key."""
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    yield s3_server
    s3_server.restore()
