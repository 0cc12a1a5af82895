from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from swav_platform.config import Config
from swav_platform.errors import UserError
from swav_platform.evaluation.parts import nearest_prototype
from swav_platform.methods.build import build_method
from swav_platform.methods.swav import Swav
from swav_platform.models.encoders import build_encoder
from swav_platform.models.inference import load_for_inference
from swav_platform.models.package import load_package, package_digest, preprocess, save_package


@pytest.fixture
def config() -> Config:
    return Config.model_validate(
        {
            "views": {"large": {"size": 32, "count": 2, "scale": (0.3, 1)}},
            "model": {"name": "resnet_tiny", "stem": "small", "projection_hidden": 16, "projection_dim": 8},
            "method": {"prototypes": 11},
        }
    )


def save(config: Config, folder: Path) -> torch.nn.Module:
    network = Swav(config).modules(build_encoder(config.model, 3))
    network.to(memory_format=torch.channels_last)
    names = {"name": "cats", "run": "r1", "run_id": "abc", "index_digest": "d", "codec": "c"}
    save_package(folder, network.state_dict(), config, **names)
    return network.eval()


def test_a_saved_package_loads_unchanged(config: Config, tmp_path: Path) -> None:
    network, x = save(config, tmp_path / "model"), torch.rand(2, 3, 32, 32)
    package = load_package(tmp_path / "model")
    assert not package.encoder.training
    assert torch.allclose(package.encoder(x), network.encoder(x), atol=1e-6)
    assert torch.allclose(package.projection(package.encoder(x)), network.projection_head(network.encoder(x)), atol=1e-6)
    assert torch.allclose(package.prototypes.norm(dim=1), torch.ones(11))
    want = {"name": "cats", "run": "r1", "prototypes": 11, "projection_dim": 8, "feature_dim": 256, "input_size": 32}
    assert package.meta.items() >= want.items()
    assert package.meta["config_digest"] == config.digest()


@pytest.mark.parametrize("name", ["simclr", "mean_shift"])
def test_a_method_without_prototypes(config: Config, tmp_path: Path, name: str) -> None:
    method = build_method(config.model_copy(update={"method": config.method.model_copy(update={"name": name})}))
    network = method.modules(build_encoder(config.model, 3))
    names = {"name": "cats", "run": "r1", "run_id": "abc", "index_digest": "d", "codec": "c"}
    package = load_package(save_package(tmp_path / "model", network.state_dict(), config, **names))
    x = torch.rand(2, 3, 32, 32)
    assert torch.allclose(package.projection(package.encoder(x)), network.eval().projection_head(network.encoder(x)), atol=1e-6)
    assert package.prototypes.shape == (0, 8)
    clusters, scores = nearest_prototype(load_for_inference(tmp_path / "model"), np.ones((3, 8), np.float32))
    assert clusters[:, 0].tolist() == [-1, -1, -1]
    assert scores[:, 0].tolist() == [0, 0, 0]


def test_digest_identifies_weights_independent_of_location(config: Config, tmp_path: Path) -> None:
    save(config, tmp_path / "a")
    (tmp_path / "a").rename(tmp_path / "b")
    before = package_digest(tmp_path / "b")
    save(config, tmp_path / "a")
    assert package_digest(tmp_path / "a") == before
    save(config.model_copy(update={"seed": 1}), tmp_path / "b")
    assert package_digest(tmp_path / "b") != before


@pytest.mark.parametrize("damage", ["missing", "cut", "format", "weights"])
def test_a_damaged_package_is_reported(config: Config, tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "model"
    save(config, folder)
    if damage == "missing":
        (folder / "head.safetensors").unlink()
    if damage == "cut":
        (folder / "encoder.safetensors").write_bytes((folder / "encoder.safetensors").read_bytes()[:1000])
    if damage == "format":
        (folder / "model.json").write_text(json.dumps(json.loads((folder / "model.json").read_text()) | {"format": 2}))
    if damage == "weights":
        meta = json.loads((folder / "model.json").read_text())
        meta["model"]["name"] = "resnet18"
        (folder / "model.json").write_text(json.dumps(meta))
    with pytest.raises(UserError, match=str(folder)):
        load_package(folder)


@pytest.mark.parametrize("shape", [(40, 90), (90, 40), (7, 5), (300, 17), (1, 1)])
@pytest.mark.parametrize("size", [32, 224])
def test_preprocessing_takes_any_image(shape: tuple[int, int], size: int) -> None:
    image = np.full((*shape, 3), 128, np.uint8)
    out = preprocess(image, size)
    assert out.shape == (3, size, size)
    assert out.dtype == torch.float32
    assert torch.allclose(
        out[:, 0, 0], torch.tensor([(128 / 255 - m) / s for m, s in ((0.485, 0.228), (0.456, 0.224), (0.406, 0.225))])
    )


def test_preprocessing_crops_the_centre() -> None:
    image = np.zeros((64, 128, 3), np.uint8)
    image[:, 32:96] = 255
    assert preprocess(image, 64).min() > 2  # entirely white
    assert preprocess(image[:, :64], 64).min() < 0
