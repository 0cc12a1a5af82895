from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch

from swav_platform.config import Model
from swav_platform.errors import UsageError, UserError
from swav_platform.models.encoders import build_encoder
from swav_platform.training.checkpoints.warm_start import load_encoder


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    return build_encoder(Model(name="resnet_tiny"), seed=1).state_dict()


@pytest.mark.parametrize("kind", ["torchvision", "published", "checkpoint", "package"])
def test_names_that_weights_come_under(weights: dict[str, torch.Tensor], tmp_path: Path, kind: str) -> None:
    path = tmp_path / ("w.pth" if kind in ("torchvision", "published") else "encoder.safetensors")
    if kind == "torchvision":
        torch.save({**weights, "fc.weight": torch.zeros(2, 256), "fc.bias": torch.zeros(2)}, path)
    elif kind == "published":
        heads = {"module.prototypes.weight": torch.zeros(3, 2), "module.projection_head.0.weight": torch.zeros(2, 256)}
        torch.save({"state_dict": {f"module.{k}": v for k, v in weights.items()} | heads}, path)
    elif kind == "checkpoint":
        safetensors.torch.save_file({f"encoder.{k}": v for k, v in weights.items()} | {"prototypes.weight": torch.zeros(3)}, path)
    else:
        safetensors.torch.save_file(weights, path)
    encoder = build_encoder(Model(name="resnet_tiny"), seed=2)
    load_encoder(encoder, tmp_path if kind == "package" else path)
    assert all(torch.equal(t, weights[name]) for name, t in encoder.state_dict().items())


def test_weights_that_do_not_fit_are_told_by_name(weights: dict[str, torch.Tensor], tmp_path: Path) -> None:
    changed = dict(weights)
    del changed["bn1.weight"]
    changed["conv1.weight"] = torch.zeros(32, 3, 3, 3)
    changed["layer5.0.conv1.weight"] = torch.zeros(1)
    torch.save(changed, tmp_path / "w.pth")
    said = r"1 missing, .*bn1\.weight; 1 of another shape, .*conv1\.weight; 1 unknown .*layer5"
    with pytest.raises(UserError, match=said):
        load_encoder(build_encoder(Model(name="resnet_tiny")), tmp_path / "w.pth")


def test_files_that_hold_no_weights(tmp_path: Path) -> None:
    encoder = build_encoder(Model(name="resnet_tiny"))
    with pytest.raises(UsageError, match="no weights at"):
        load_encoder(encoder, tmp_path / "none.pth")
    for name in ("bad.pth", "bad.safetensors"):
        (tmp_path / name).write_bytes(b"rubbish")
        with pytest.raises(UserError, match="can't be read"):
            load_encoder(encoder, tmp_path / name)
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(UserError, match="not a mapping"):
        load_encoder(encoder, tmp_path / "list.pth")
