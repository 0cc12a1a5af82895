"""A finished run with a tiny model, and a few image files."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from swav_platform.config import Config
from swav_platform.methods.build import build_method
from swav_platform.models.encoders import build_encoder
from swav_platform.models.package import save_package
from swav_platform.runs.folder import RunFolder

SETTINGS = {
    "views": {"large": {"size": 32, "count": 2, "scale": (0.3, 1)}},
    "model": {"name": "resnet_tiny", "stem": "small", "projection_hidden": 16, "projection_dim": 8},
    "method": {"prototypes": 11},
}


def image_file(seed: int, kind: str = "JPEG", size: tuple[int, int] = (48, 40)) -> bytes:
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(out, kind)
    return out.getvalue()


def write_run(folder: Path, method: str = "swav") -> RunFolder:
    config = Config.model_validate({**SETTINGS, "method": {**SETTINGS["method"], "name": method}})
    torch.manual_seed(1)
    network = build_method(config).modules(build_encoder(config.model, 3))
    run = RunFolder(folder)
    names = {"name": "tiny", "run": folder.name, "run_id": "1", "index_digest": "i", "codec": "c"}
    save_package(run.package, network.state_dict(), config, **names)
    run.write(config, index=run.index, index_digest="i", samples=0)
    return run


@pytest.fixture(scope="session")
def draw() -> Callable[..., bytes]:
    """draw(seed, kind, size): the content of an image file."""
    return image_file


@pytest.fixture(scope="session")
def make_run() -> Callable[..., RunFolder]:
    """make_run(folder, method): a finished run."""
    return write_run


@pytest.fixture(scope="session")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with the run runs/mine and the images photo.jpg and other.png."""
    folder = tmp_path_factory.mktemp("work")
    write_run(folder / "runs" / "mine")
    (folder / "photo.jpg").write_bytes(image_file(0))
    (folder / "other.png").write_bytes(image_file(1, "PNG"))
    return folder
