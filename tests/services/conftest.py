"""A tiny model, a few images and their embeddings, and the service over them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from fastapi.testclient import TestClient
from torch.nn.functional import normalize

from services.embeddings.app import create_app
from services.embeddings.settings import Limits, ServiceSettings
from swav_platform.config import Config, ImagePolicy, Model, ViewGroup
from swav_platform.images.decoding.decode import decode
from swav_platform.models.encoders import build_encoder
from swav_platform.models.heads import projection_head
from swav_platform.models.package import load_package, package_digest, preprocess, save_package
from tests.makers import smooth

PROTOTYPES, DIM, SIZE = 12, 16, 32


def direct(package_folder: Path, images: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Unit-length features and projections by plain torch, one image after the other."""
    package = load_package(package_folder)
    package.encoder.eval()
    package.projection.eval()
    found = []
    with torch.inference_mode():
        for data in images:
            features = package.encoder(preprocess(decode(data, ImagePolicy()), SIZE)[None])
            found.append((normalize(features, dim=1)[0].numpy(), normalize(package.projection(features), dim=1)[0].numpy()))
    return np.stack([f for f, _ in found]), np.stack([p for _, p in found])


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    torch.manual_seed(3)
    model = Model(name="resnet_tiny", stem="small", stem_stride=2, projection_hidden=32, projection_dim=DIM)
    encoder = build_encoder(model)
    network = torch.nn.ModuleDict(
        {
            "encoder": encoder,
            "projection_head": projection_head(encoder.feature_dim, 32, DIM),
            "prototypes": torch.nn.Linear(DIM, PROTOTYPES, bias=False),
        }
    )
    for module in network.modules():
        if hasattr(module, "running_mean"):  # statistics as training would leave them: not those of the start
            module.running_mean.uniform_(-0.1, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    views = {"all": ViewGroup(size=SIZE, count=2, scale=(0.3, 1.0))}
    settings = Config(model=model, views=views)
    folder = tmp_path_factory.mktemp("package") / "model"
    return save_package(folder, network.state_dict(), settings, name="tiny", run="r", run_id="1", index_digest="i", codec="c")


@pytest.fixture(scope="session")
def draw() -> Callable[..., bytes]:
    return smooth


@pytest.fixture(scope="session")
def truth(package: Path, pictures: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
    return direct(package, pictures)


@pytest.fixture(scope="session")
def pictures() -> list[bytes]:
    return [smooth(seed) for seed in range(40)]


@pytest.fixture(scope="session")
def stored(
    package: Path, pictures: list[bytes], truth: tuple[np.ndarray, np.ndarray], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Embeddings of the pictures as `swav embed` writes them. Key 0007 stands in both shards."""
    features, projections = truth
    scores = projections @ load_package(package).prototypes.numpy().T
    keys = [f"{n:04d}" for n in range(20)] + ["0007"] + [f"{n:04d}" for n in range(21, 40)]
    table = pa.table(
        {
            "key": keys,
            "shard": ["a.tar"] * 20 + ["b.tar"] * 20,
            "sample": pa.array(range(40), pa.int64()),
            "label": pa.array([None, *(["even", "odd"] * 20)[1:]], pa.string()),
            "cluster": pa.array(scores.argmax(1), pa.int32()),
            "score": pa.array(scores.max(1), pa.float32()),
            "embedding": pa.FixedSizeListArray.from_arrays(pa.array(features.astype(np.float16).ravel()), features.shape[1]),
            "thumbnail": pa.array([None, *pictures[1:]], pa.binary()),
        }
    )
    folder = tmp_path_factory.mktemp("embeddings")
    pq.write_table(table, folder / "embeddings.parquet", row_group_size=16)
    report = {"samples": 40, "dim": features.shape[1], "model": package_digest(package)}
    (folder / "embeddings.json").write_text(json.dumps(report))
    return folder


SMALL = Limits(max_bytes=100_000, max_pixels=1_000_000, max_items=8, max_body=500_000)


@pytest.fixture(scope="session")
def service(package: Path, stored: Path) -> Iterator[TestClient]:
    settings = ServiceSettings(model=package, embeddings=stored, limits=SMALL, threads=1)
    with TestClient(create_app(settings), raise_server_exceptions=False) as client:
        yield client


@pytest.fixture(scope="session")
def bare(package: Path) -> Iterator[TestClient]:
    """The service without embeddings."""
    with TestClient(create_app(ServiceSettings(model=package, threads=1))) as client:
        yield client
