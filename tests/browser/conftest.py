"""A made-up set of many clusters behind the service, and a browser."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from services.embeddings import server
from services.embeddings.settings import ServiceSettings
from swav_platform.config import Config, Model, ViewGroup
from swav_platform.models.encoders import build_encoder
from swav_platform.models.heads import projection_head
from swav_platform.models.package import package_digest, save_package
from tests.makers import smooth

SAMPLES, CLUSTERS = 2000, 3000
HOSTILE = "photos/<img src=x onerror=window.hacked=1>"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`model` and `set`: 2,000 samples in the first 50 of 3,000 clusters, with labels, thumbnails, duplicates and outliers."""
    return make(tmp_path_factory.mktemp("explored"), SAMPLES, 50)


def make(root: Path, samples: int, used: int) -> Path:
    """Writes `model`, with 3,000 clusters, and `set`, with so many samples in the first `used` of them."""
    torch.manual_seed(0)
    model = Model(name="resnet_tiny", stem="small", stem_stride=2, projection_hidden=32, projection_dim=16)
    encoder = build_encoder(model)
    network = torch.nn.ModuleDict(
        {
            "encoder": encoder,
            "projection_head": projection_head(encoder.feature_dim, 32, 16),
            "prototypes": torch.nn.Linear(16, CLUSTERS, bias=False),
        }
    )
    settings = Config(model=model, views={"all": ViewGroup(size=32, count=2, scale=(0.3, 1.0))})
    save_package(root / "model", network.state_dict(), settings, name="flowers", run="r", run_id="1", index_digest="i", codec="c")
    write_set(root / "set", encoder.feature_dim, package_digest(root / "model"), samples, used)
    return root


def write_set(folder: Path, dim: int, digest: str, samples: int, used: int) -> None:
    rng = np.random.default_rng(0)
    cluster = np.arange(samples) % used
    vectors = rng.normal(size=(used, dim))[cluster] + 0.5 * rng.normal(size=(samples, dim))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    pictures = [smooth(seed) for seed in range(20)]
    table = pa.table(
        {
            "key": [HOSTILE, *(f"photos/{i:05d}" for i in range(1, samples))],
            "shard": [f"shard-{i // 500:06d}.tar" for i in range(samples)],
            "sample": pa.array(range(samples), pa.int64()),
            "label": [f"class {c % 7}" for c in cluster],
            "cluster": pa.array(cluster, pa.int32()),
            "score": pa.array(rng.uniform(0.2, 0.9, samples), pa.float32()),
            "embedding": pa.FixedSizeListArray.from_arrays(pa.array(vectors.astype(np.float16).ravel()), dim),
            "thumbnail": pa.array([pictures[i % 20] for i in range(samples)], pa.binary()),
        }
    )
    folder.mkdir()
    pq.write_table(table, folder / "embeddings.parquet")
    (folder / "embeddings.json").write_text(json.dumps({"samples": samples, "dim": dim, "model": digest}))
    group = pa.table({"group": [0, 0, 0, 1, 1], "sample": [7, 57, 107, 8, 58], "similarity": pa.array([0.97] * 5, pa.float32())})
    pq.write_table(group, folder / "duplicates.parquet")
    pq.write_table(pa.table({"sample": [3, 4], "score": pa.array([0.1, 0.2], pa.float32())}), folder / "outliers.parquet")


@pytest.fixture(scope="module")
def url(folder: Path) -> Iterator[str]:
    with server.serving(ServiceSettings(model=folder / "model", embeddings=folder / "set", threads=1)) as found:
        yield found


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("Chromium is not installed")
    from playwright.sync_api import sync_playwright

    quiet = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
    with sync_playwright() as play:
        opened = play.chromium.launch(executable_path=chromium, args=quiet)
        yield opened
        opened.close()


class Seen:
    """What a page did beside showing itself."""

    def __init__(self) -> None:
        self.errors: list[str] = []
        self.hosts: set[str] = set()


@pytest.fixture(params=[(1280, 800, "light"), (390, 844, "dark")], ids=["desktop", "phone"])
def page(browser: Any, url: str, request: pytest.FixtureRequest) -> Iterator[Any]:
    width, height, scheme = request.param
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
    yield watched(context.new_page())
    context.close()


@pytest.fixture
def desktop(browser: Any, url: str) -> Iterator[Any]:
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    yield watched(context.new_page())
    context.close()


def watched(page: Any) -> Any:
    page.seen = Seen()
    page.on("console", lambda line: page.seen.errors.append(line.text) if line.type == "error" else None)
    page.on("pageerror", lambda error: page.seen.errors.append(str(error)))
    page.on("request", lambda sent: page.seen.hosts.add(sent.url.split("/")[2] if sent.url.startswith("http") else ""))
    return page
