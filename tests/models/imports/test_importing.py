"""Published names and shapes become packages that compute what plain torch computes; everything else is refused."""

from __future__ import annotations

import io
import json
import os
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from click.testing import CliRunner

from swav_platform.cli.imports import import_command
from swav_platform.config import Model, from_tree
from swav_platform.errors import UsageError, UserError
from swav_platform.methods.build import build_method
from swav_platform.models.encoders import build_encoder
from swav_platform.models.imports import parity
from swav_platform.models.imports.importing import import_weights, recognised
from swav_platform.models.imports.trunk import recognise, shapes
from swav_platform.models.inference import load_for_inference
from swav_platform.models.package import load_package
from swav_platform.training.checkpoints.warm_start import load_heads
from tests.models.imports.published import KINDS, checkpoint, trunk

WEIGHTS = trunk()
HEADS = {"swav": 7, "swav checkpoint": 7, "swav w5": 7, "deepclusterv2": 15, "selav2": 15, "vissl": 15}


def saved(tree: Any, path: Path) -> Path:
    torch.save(tree, path)
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_every_published_form_computes_what_plain_torch_computes(kind: str, tmp_path: Path) -> None:
    file = saved(checkpoint(kind, WEIGHTS, 256), tmp_path / "some_pretrain.pth.tar")
    report = import_weights(str(file), tmp_path / "package")
    images = torch.randn(3, 3, 40, 40)
    package = load_package(tmp_path / "package")
    plain = parity.plain_features(WEIGHTS, images, "imagenet")
    assert parity.difference(parity.features(package.encoder, images), plain) < 1e-6
    assert report["prototypes"] == len(package.prototypes) == HEADS.get(kind, 0)
    assert report["projection_head"] == (kind in HEADS or kind == "msf")
    assert report["parity"] < 1e-6
    assert report["name"] == "some_pretrain"
    model = load_for_inference(tmp_path / "package")
    encoded = model.encode(images)
    assert encoded.projections.shape == (3, 8 if report["projection_head"] else 256)
    if kind in HEADS:
        assert model.assign(encoded.projections, 2).clusters.shape == (3, 2)
    assert report["licence"] in (package.meta["source"]["licence"], "unknown")


@pytest.mark.parametrize("kind", ["swav", "swav w5"])
def test_the_head_computes_what_plain_torch_computes(kind: str, tmp_path: Path) -> None:
    tree = checkpoint(kind, WEIGHTS, 256)
    import_weights(str(saved(tree, tmp_path / "w.pth.tar")), tmp_path / "package")
    linear, norm = torch.nn.Linear, torch.nn.BatchNorm1d
    plain = torch.nn.Sequential(linear(256, 24), *([norm(24)] if kind == "swav" else []), torch.nn.ReLU(), linear(24, 8)).eval()
    prefix = "module.projection_head."
    plain.load_state_dict({k.removeprefix(prefix): t for k, t in tree.items() if k.startswith(prefix)})
    x = torch.randn(4, 256)
    assert torch.allclose(load_package(tmp_path / "package").projection(x), plain(x), atol=1e-6)


@pytest.mark.parametrize("name", ["resnet50", "resnet50w2", "resnet50w4", "resnet50w5", "resnet18", "resnet34", "resnet101"])
def test_shapes_of_published_encoders_are_told_apart(name: str) -> None:
    with torch.device("meta"):
        tensors = {key: torch.empty(shape) for key, shape in shapes(name, "imagenet").items()}
    assert recognise(tensors, "file") == (name, "imagenet")


@pytest.mark.parametrize("name", ["resnet50", "resnet50w2"])
def test_names_and_shapes_of_the_published_files(golden: Path, name: str) -> None:
    entries = json.loads((golden / "resnet_shapes.json").read_text())[name]["entries"]
    tree = {f"module.{key}": torch.empty(shape, device="meta") for key, shape, *_ in entries}
    parts = recognised(tree, "file")
    assert recognise(parts.trunk, "file") == (name, "imagenet")
    assert [list(t.shape) for t in parts.prototypes] == [[3000, 128]]
    assert len(parts.trunk) + len(parts.head) + 1 == len(entries)
    assert parts.left_out == ()


def test_a_whole_resnet50(tmp_path: Path) -> None:
    weights = trunk("resnet50")
    report = import_weights(
        str(saved(checkpoint("swav", weights, 2048), tmp_path / "swav_800ep_pretrain.pth.tar")), tmp_path / "p"
    )
    assert report["encoder"] == "resnet50"
    assert report["parity"] < 1e-6
    assert report["licence"] == "CC-BY-NC-4.0"
    assert load_package(tmp_path / "p").meta["feature_dim"] == 2048


class Evil:
    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {os.environ['SWAV_EVIL']}",)


def broken(kind: str, path: Path) -> None:
    tree = checkpoint("swav", WEIGHTS, 256)
    if kind == "pickle":
        path.write_bytes(pickle.dumps({"state_dict": Evil()}))
    elif kind in ("torch pickle", "old torch pickle"):
        torch.save({"state_dict": tree, "more": Evil()}, path, _use_new_zipfile_serialization=kind == "torch pickle")
    elif kind == "half":
        names = list(tree)
        torch.save({name: tree[name] for name in names[: len(names) // 2]}, path)
    elif kind == "shapes":
        torch.save(tree | {"module.layer2.0.conv1.weight": torch.zeros(64, 32, 5, 5)}, path)
    elif kind == "prefix":
        torch.save({f"net.{name}": t for name, t in WEIGHTS.items()}, path)
    elif kind == "mixed prefix":
        torch.save({f"{'module.' if i % 2 else ''}{name}": t for i, (name, t) in enumerate(WEIGHTS.items())}, path)
    elif kind == "more":
        torch.save(tree | {"module.layer5.0.conv1.weight": torch.zeros(1)}, path)
    elif kind == "heads":
        torch.save({name: t for name, t in tree.items() if "projection" in name or "prototypes" in name}, path)
    elif kind == "tar":
        torch.save(tree, inner := path.with_name("inner.pth.tar"))
        with tarfile.open(path, "w") as archive:
            archive.add(inner, "inner.pth.tar")
    elif kind == "zip":
        with zipfile.ZipFile(path, "w") as zipped:
            zipped.writestr("weights.pth", b"x")
    elif kind == "nan":
        torch.save(tree | {"module.bn1.weight": torch.full((32,), float("nan"))}, path)
    elif kind == "list":
        torch.save([torch.zeros(1)], path)
    else:
        buffer = io.BytesIO()
        torch.save(tree, buffer)
        path.write_bytes(buffer.getvalue()[:-2000] if kind == "cut" else b"<html>not found</html>")


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("pickle", "nothing in it was executed"),
        ("torch pickle", "nothing in it was executed"),
        ("old torch pickle", "nothing in it was executed"),
        ("half", r"\d+ missing, such as"),
        ("shapes", r"1 of another shape, such as layer2\.0\.conv1\.weight \[64, 32, 5, 5\], not \[64, 32, 3, 3\]"),
        ("prefix", r"it holds net\.conv1\.weight"),
        ("mixed prefix", "missing|no names of"),
        ("more", r"1 unknown, such as layer5"),
        ("heads", "no trunk"),
        ("tar", r"tar archive of inner\.pth\.tar"),
        ("zip", r"zip archive of weights\.pth"),
        ("nan", "not finite"),
        ("list", "it holds a list"),
        ("cut", "can't be read as weights"),
        ("web page", "can't be read as weights"),
    ],
)
def test_other_files_are_refused(kind: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWAV_EVIL", str(tmp_path / "executed"))
    broken(kind, tmp_path / "w.pth.tar")
    with pytest.raises(UserError, match=reason):
        import_weights(str(tmp_path / "w.pth.tar"), tmp_path / "package")
    assert not (tmp_path / "package").exists()
    assert not (tmp_path / "executed").exists()
    assert not list(tmp_path.glob(".import-*"))


def test_safetensors_of_timm_names_and_older_files_without_counters(tmp_path: Path) -> None:
    bare = {name: t for name, t in WEIGHTS.items() if not name.endswith("num_batches_tracked")}
    safetensors.torch.save_file(bare, tmp_path / "model.safetensors")
    report = import_weights(str(tmp_path / "model.safetensors"), tmp_path / "p", licence="BSD-3-Clause")
    assert report["licence"] == "BSD-3-Clause"
    assert "BSD-3-Clause" in (tmp_path / "p" / "README.md").read_text()
    assert report["sha256"] in (tmp_path / "p" / "README.md").read_text()
    again = import_weights(str(tmp_path / "model.safetensors"), tmp_path / "p", name="other", digest=report["sha256"].upper())
    assert again["name"] == "other"
    with pytest.raises(UserError, match="sha256"):
        import_weights(str(tmp_path / "model.safetensors"), tmp_path / "q", digest="00")


def test_a_folder_of_something_else_is_not_replaced(tmp_path: Path) -> None:
    saved(WEIGHTS, tmp_path / "w.pth")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"cat")
    with pytest.raises(UsageError, match="not replaced"):
        import_weights(str(tmp_path / "w.pth"), tmp_path / "photos")
    with pytest.raises(UsageError, match="no file"):
        import_weights(str(tmp_path / "none.pth"), tmp_path / "p")
    assert (tmp_path / "photos" / "cat.jpg").exists()


def test_a_3x3_stem_needs_its_stride(tmp_path: Path) -> None:
    encoder = build_encoder(Model(name="resnet_tiny", stem="small", stem_stride=2))
    saved(encoder.state_dict(), tmp_path / "w.pth")
    with pytest.raises(UserError, match="--stem-stride"):
        import_weights(str(tmp_path / "w.pth"), tmp_path / "p")
    import_weights(str(tmp_path / "w.pth"), tmp_path / "p", stem_stride=2, input_size=32)
    x = torch.randn(2, 3, 32, 32)
    assert torch.allclose(load_package(tmp_path / "p").encoder(x), encoder.eval()(x), atol=1e-6)


@pytest.mark.parametrize("method", ["swav", "mean_shift", "simclr"])
def test_training_continues_with_heads(method: str, tmp_path: Path) -> None:
    tree = checkpoint("swav", WEIGHTS, 256)
    import_weights(str(saved(tree, tmp_path / "w.pth.tar")), tmp_path / "p")
    model = {"name": "resnet_tiny", "projection_hidden": 24, "projection_dim": 8}
    config = from_tree({"model": model, "method": {"name": method, "prototypes": 7}})
    network: Any = build_method(config).modules(build_encoder(config.model))
    load_heads(network, str(tmp_path / "p"))
    package = load_package(tmp_path / "p")
    x = torch.randn(4, 256)
    assert torch.allclose(network.eval().projection_head(x), package.projection(x))
    if method == "swav":
        assert torch.equal(network.prototypes.weight, package.prototypes)
    if method == "mean_shift":
        assert torch.allclose(network.momentum[1](x), package.projection(x))
    other = from_tree({"model": model, "method": {"prototypes": 9}})
    with pytest.raises(UserError, match=r"prototypes.*\[7, 8\].*\[9, 8\]"):
        load_heads(build_method(other).modules(build_encoder(other.model)), str(tmp_path / "p"))
    with pytest.raises(UsageError, match="swav import"):
        load_heads(network, str(tmp_path / "w.pth.tar"))


def test_the_command_reports(tmp_path: Path) -> None:
    saved(checkpoint("dino", WEIGHTS, 256), tmp_path / "dino.pth")
    result = CliRunner().invoke(import_command, [str(tmp_path / "dino.pth"), "--to", str(tmp_path / "p"), "--json"])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout.splitlines()[-1])
    assert report["kind"] == "dino"
    assert report["left_out"] == ["head.mlp.0.weight", "head.last_layer.weight_g"]
