"""Exports load in their frameworks where those are installed; else their names and shapes are the published ones."""

from __future__ import annotations

import json
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from click.testing import CliRunner
from torch import Tensor
from torch.nn.functional import cosine_similarity

from swav_platform.cli.export import export_command
from swav_platform.errors import UsageError, UserError
from swav_platform.models.exports.folder import export_folder
from swav_platform.models.exports.names import NAMES, detectron2, transformers
from swav_platform.models.imports.importing import import_weights
from swav_platform.models.imports.trunk import shapes
from swav_platform.models.package import load_package
from tests.models.imports.published import trunk

PUBLISHED = {
    # detectron2's R-50.pkl and transformers' microsoft/resnet-50, one entry of each kind
    "detectron2": {
        "stem.conv1.weight": [64, 3, 7, 7],
        "stem.conv1.norm.running_mean": [64],
        "res2.0.shortcut.weight": [256, 64, 1, 1],
        "res2.0.shortcut.norm.bias": [256],
        "res2.0.conv1.weight": [64, 64, 1, 1],
        "res2.0.conv3.norm.weight": [256],
        "res3.3.conv2.weight": [128, 128, 3, 3],
        "res5.2.conv3.norm.running_var": [2048],
    },
    "transformers": {
        "embedder.embedder.convolution.weight": [64, 3, 7, 7],
        "embedder.embedder.normalization.running_mean": [64],
        "encoder.stages.0.layers.0.shortcut.convolution.weight": [256, 64, 1, 1],
        "encoder.stages.0.layers.0.shortcut.normalization.bias": [256],
        "encoder.stages.0.layers.0.layer.0.convolution.weight": [64, 64, 1, 1],
        "encoder.stages.0.layers.0.layer.2.normalization.weight": [256],
        "encoder.stages.1.layers.3.layer.1.convolution.weight": [128, 128, 3, 3],
        "encoder.stages.3.layers.2.layer.2.normalization.running_var": [2048],
    },
}


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    return trunk("resnet18")


@pytest.fixture(scope="module")
def package(weights: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packages")
    torch.save(weights, folder / "resnet18.pth")
    import_weights(str(folder / "resnet18.pth"), folder / "package", licence="BSD-3-Clause", input_size=64)
    return folder / "package"


def exported(package: Path, target: str, folder: Path) -> dict[str, Any]:
    given = [str(package), "--to", target, "--folder", str(folder), "--json"]
    result = CliRunner().invoke(export_command, given, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return dict(json.loads(result.stdout.splitlines()[-1]))


def same(package: Path, got: Tensor, images: Tensor) -> bool:
    with torch.inference_mode():
        return float(cosine_similarity(got.flatten(1), load_package(package).encoder(images)).min()) >= 0.99999


@pytest.mark.parametrize("target", PUBLISHED)
def test_names_are_the_published_ones(target: str) -> None:
    found = {NAMES[target](name): list(shape) for name, shape in shapes("resnet50", "imagenet").items()}
    assert len(found) == 265, "no two weights have one name"
    assert {name: found.get(name) for name in PUBLISHED[target]} == PUBLISHED[target]
    pattern = {
        "detectron2": r"(stem\.conv1|res[2-5]\.\d\.(conv[123]|shortcut))\.(weight|norm\.(weight|bias|running_mean|running_var))",
        "transformers": r"(embedder\.embedder|encoder\.stages\.[0-3]\.layers\.\d\.(layer\.[012]|shortcut))\."
        r"(convolution\.weight|normalization\.(weight|bias|running_mean|running_var))",
    }[target]
    assert all(re.fullmatch(pattern, name) for name in found)
    assert detectron2("layer4.2.bn2.weight") == "res5.2.conv2.norm.weight"
    assert transformers("layer1.0.downsample.1.weight") == "encoder.stages.0.layers.0.shortcut.normalization.weight"


def test_torch_export_loads(package: Path, tmp_path: Path) -> None:
    report = exported(package, "torch-export", tmp_path / "e")
    assert report["cosine"] >= 0.99999
    images = torch.randn(5, 3, 64, 64)
    assert same(package, torch.export.load(tmp_path / "e" / "model.pt2").module()(images), images)


def test_onnx_loads(package: Path, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    exported(package, "onnx", tmp_path / "e")
    session = onnxruntime.InferenceSession(str(tmp_path / "e" / "model.onnx"))
    images = torch.randn(5, 3, 64, 64)
    [got] = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    assert same(package, torch.from_numpy(got), images)


def test_torchvision_has_the_names_and_shapes(package: Path, weights: dict[str, Tensor], tmp_path: Path) -> None:
    exported(package, "torchvision", tmp_path / "e")
    found = safetensors.torch.load_file(tmp_path / "e" / "model.safetensors")
    assert {name: t.shape for name, t in found.items()} == {name: t.shape for name, t in weights.items()}
    torchvision = pytest.importorskip("torchvision")
    model = torchvision.models.resnet18()
    model.fc = torch.nn.Identity()
    model.load_state_dict(found)
    images = torch.randn(2, 3, 64, 64)
    assert same(package, model.eval()(images), images)


def test_timm_folder(package: Path, weights: dict[str, Tensor], tmp_path: Path) -> None:
    exported(package, "timm", tmp_path / "e")
    config = json.loads((tmp_path / "e" / "config.json").read_text())
    assert config["architecture"] == "resnet18"
    assert config["pretrained_cfg"]["license"] == "BSD-3-Clause"
    assert set(safetensors.torch.load_file(tmp_path / "e" / "model.safetensors")) == set(weights)
    timm = pytest.importorskip("timm")
    model = timm.create_model(f"local-dir:{tmp_path}/e", pretrained=True).eval()
    images = torch.randn(2, 3, 64, 64)
    assert same(package, model(images), images)


def test_transformers_folder(package: Path, tmp_path: Path) -> None:
    exported(package, "transformers", tmp_path / "e")
    config = json.loads((tmp_path / "e" / "config.json").read_text())
    assert (config["model_type"], config["layer_type"], config["hidden_sizes"]) == ("resnet", "basic", [64, 128, 256, 512])
    found = pytest.importorskip("transformers").AutoModel.from_pretrained(str(tmp_path / "e"))
    images = torch.randn(2, 3, 64, 64)
    assert same(package, found.eval()(images).pooler_output, images)


def test_detectron2_and_mmdet_files(package: Path, weights: dict[str, Tensor], tmp_path: Path) -> None:
    exported(package, "detectron2", tmp_path / "d")
    tree = pickle.loads((tmp_path / "d" / "model.pkl").read_bytes())
    assert tree["matching_heuristics"]
    kept = {name for name in weights if not name.endswith("num_batches_tracked")}
    assert set(tree["model"]) == {detectron2(name) for name in kept}
    assert torch.equal(torch.from_numpy(tree["model"]["res2.1.conv2.weight"]), weights["layer1.1.conv2.weight"])
    exported(package, "mmdet", tmp_path / "m")
    state = torch.load(tmp_path / "m" / "model.pth", weights_only=True)["state_dict"]
    assert all(torch.equal(state[name], t) for name, t in weights.items())


def test_the_card_has_a_command_for_every_number(package: Path, tmp_path: Path) -> None:
    exported(package, "torchvision", tmp_path / "e")
    card = (tmp_path / "e" / "README.md").read_text()
    assert "license: bsd-3-clause" in card
    rows = [line for line in card.splitlines() if line.startswith("| ") and not line.startswith("| fact")]
    assert len(rows) >= 8
    for row in rows:
        assert re.search(r"\| `(swav|python|grep|sha256sum) .+` \|$", row), row


@pytest.mark.parametrize(("target", "name"), [("timm", "resnet_tiny"), ("torchvision", "resnet50w2")])
def test_encoders_that_a_framework_does_not_have(target: str, name: str, tmp_path: Path) -> None:
    from swav_platform.models.exports.frameworks import check

    with pytest.raises(UserError, match="--to torch-export"):
        check(target, {"name": name, "stem": "imagenet"})
    with pytest.raises(UserError, match="small stem"):
        check("transformers", {"name": "resnet18", "stem": "small"})
    check("transformers", {"name": "resnet50w2", "stem": "imagenet"})


def test_only_exports_are_replaced(package: Path, tmp_path: Path) -> None:
    exported(package, "torchvision", tmp_path / "e")
    exported(package, "timm", tmp_path / "e")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"cat")
    with pytest.raises(UsageError, match="not replaced"):
        export_folder(package, "timm", tmp_path / "photos", lambda report: "")
    result = CliRunner().invoke(export_command, [str(package), "--to", "timm", "--int8"])
    assert isinstance(result.exception, UsageError)
