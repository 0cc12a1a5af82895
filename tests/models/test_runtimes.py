"""All runtimes compute the package's features, or say why they do not run."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import safetensors.torch
import torch

from swav_platform.config import Config
from swav_platform.errors import UsageError, UserError
from swav_platform.methods.swav import Swav
from swav_platform.models.encoders import build_encoder
from swav_platform.models.exports.onnx import export_fp32, export_int8
from swav_platform.models.inference import load_for_inference
from swav_platform.models.package import package_digest, save_package
from swav_platform.models.reference import FILE, probe
from swav_platform.models.runtimes import choose
from swav_platform.models.runtimes.eager import has_bf16
from swav_platform.models.runtimes.runtime import buckets, cosines

SIZE = 32


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package with both ONNX exports."""
    folder = save(tmp_path_factory.mktemp("exported") / "model")
    export_fp32(folder)
    noise = np.random.Generator(np.random.PCG64(1)).normal(size=(16, 3, SIZE, SIZE)).astype(np.float32)
    export_int8(folder, np.concatenate([probe(SIZE), noise]))
    return folder


@pytest.fixture
def copied(exported: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported, tmp_path / "model"))


def save(folder: Path, seed: int = 3) -> Path:
    config = Config.model_validate(
        {
            "views": {"large": {"size": SIZE, "count": 2, "scale": (0.3, 1)}},
            "model": {"name": "resnet_tiny", "stem": "small", "projection_hidden": 16, "projection_dim": 8},
            "method": {"prototypes": 11},
        }
    )
    network = Swav(config).modules(build_encoder(config.model, seed))
    return save_package(folder, network.state_dict(), config, name="cats", run="r", run_id="i", index_digest="d", codec="c")


def names() -> list[str]:
    return ["torch", "onnx", "int8", *(["bf16"] if has_bf16("cpu") else [])]


@pytest.mark.parametrize("name", names())
def test_every_runtime_computes_the_same_features(exported: Path, name: str) -> None:
    model, exact = load_for_inference(exported, name, threads=1), load_for_inference(exported)
    images = torch.from_numpy(np.random.Generator(np.random.PCG64(5)).normal(size=(37, 3, SIZE, SIZE)).astype(np.float32))
    found, expected = model.encode(images), exact.encode(images)
    assert found.features.dtype == found.projections.dtype == np.float32
    assert found.features.shape == expected.features.shape
    least = {"torch": 0.9999999, "onnx": 0.99999}.get(name, choose.PARITY[model.runtime.precision])
    assert cosines(found.features, expected.features).min() >= least
    assert cosines(found.projections, expected.projections).min() >= min(least, 0.999)
    one = model.encode(images[:1])  # the batch does not change an image's features
    np.testing.assert_allclose(one.features[0], found.features[0], atol=1e-5 if name in ("torch", "onnx") else 1e-2)


def test_batches_are_powers_of_two() -> None:
    assert [part.stop - part.start for part in buckets(37)] == [32, 4, 1]
    assert [part.stop - part.start for part in buckets(64)] == [32, 32]
    assert list(buckets(0)) == []


def test_the_precision_is_part_of_the_digest(exported: Path) -> None:
    exact, small = load_for_inference(exported, "onnx"), load_for_inference(exported, "int8")
    assert exact.digest == load_for_inference(exported).digest == package_digest(exported)
    assert small.digest.startswith(exact.digest + "-int8-")
    assert exact.made_comparable(small.digest)  # the package has shown the parity of its int8 export
    assert small.made_comparable(exact.digest)
    assert exact.made_comparable(exact.digest + "-bf16")
    assert not exact.made_comparable("0123456789abcdef")


def test_int8_of_another_machine_is_comparable_only_with_shown_parity(tmp_path: Path) -> None:
    model = load_for_inference(save(tmp_path / "model"))
    assert not model.made_comparable(f"{model.digest}-int8-01234567")


def test_auto_takes_the_fastest_and_remembers(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWAV_CACHE", str(tmp_path))
    monkeypatch.setattr(choose, "FAST", 1e-9)  # as if the encoder were large
    monkeypatch.setattr(choose, "SECONDS", 0.01)
    rates = {"torch": 10.0, "bf16": 15.0, "onnx": 20.0, "int8": 90.0}
    measured: list[str] = []

    def rate(runtime: choose.Runtime, size: int) -> float:
        measured.append(runtime.name)
        return rates[runtime.name]

    monkeypatch.setattr(choose, "_rate", rate)
    assert load_for_inference(exported, "auto").runtime.name == "onnx"
    assert load_for_inference(exported, "auto", allow_int8=True).runtime.name == "int8"
    count = len(measured)
    assert load_for_inference(exported, "auto").runtime.name == "onnx"
    assert len(measured) == count  # from the cache


def test_a_fast_encoder_stays_with_torch(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWAV_CACHE", str(tmp_path))
    monkeypatch.setattr(choose, "_rate", lambda runtime, size: 10_000.0)
    assert load_for_inference(exported, "auto").runtime.name == "torch"


def test_onnx_without_an_export_makes_one_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWAV_CACHE", str(tmp_path / "cache"))
    folder = save(tmp_path / "model")
    assert load_for_inference(folder, "onnx").runtime.name == "onnx"
    [made] = (tmp_path / "cache" / "onnx").iterdir()
    before = made.stat().st_mtime_ns
    load_for_inference(folder, "onnx")
    assert made.stat().st_mtime_ns == before


def test_what_this_machine_does_not_have(exported: Path) -> None:
    for name, device, words in (
        ("fast", "cpu", "Choose one of"),
        ("onnx", "cuda", "no GPU|CPUs only"),
        ("compile", "cpu", "for GPUs"),
        ("torch", "gpu0", "no device"),
    ):
        with pytest.raises(UsageError, match=words):
            load_for_inference(exported, name, device=device)


@pytest.mark.parametrize("damage", ["int8 file", "int8 of other weights", "fp32 weights", "int8 weights"])
def test_a_damaged_export_is_refused(copied: Path, damage: str) -> None:
    runtime = "onnx" if damage == "fp32 weights" else "int8"
    precision = "fp32" if runtime == "onnx" else "int8"
    path, told = copied / "onnx" / f"encoder.{precision}.onnx", copied / "onnx" / f"{precision}.json"
    if damage == "int8 file":
        path.write_bytes(path.read_bytes()[:-100])
    elif damage == "int8 of other weights":
        told.write_text(json.dumps(json.loads(told.read_text()) | {"model": "0123456789abcdef"}))
    else:  # a whole file with a matching checksum, which computes something else
        graph = onnx.load(path)
        for weight in graph.graph.initializer:
            values = onnx.numpy_helper.to_array(weight)
            if values.dtype in (np.float32, np.int8) and values.ndim == 4:
                weight.CopyFrom(onnx.numpy_helper.from_array(values[::-1].copy(), weight.name))
        onnx.save(graph, path)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        told.write_text(json.dumps(json.loads(told.read_text()) | {"sha256": digest}))
    with pytest.raises(UserError, match=r"other features|can't be used"):
        load_for_inference(copied, runtime)


@pytest.mark.parametrize("damage", ["flipped", "nan", "half"])
def test_damaged_weights_show_in_the_reference(copied: Path, damage: str) -> None:
    path = copied / "encoder.safetensors"
    weights = safetensors.torch.load_file(path)
    name = next(name for name, weight in weights.items() if weight.ndim == 4)
    if damage == "flipped":
        weights[name] = -weights[name]
    if damage == "nan":
        weights[name][0, 0, 0, 0] = float("nan")
    if damage == "half":
        weights = {name: weight.half() if weight.is_floating_point() else weight for name, weight in weights.items()}
    path.write_bytes(safetensors.torch.save(weights))
    words = {"flipped": "other features", "nan": "not finite", "half": "float16"}[damage]
    with pytest.raises(UserError, match=words):
        load_for_inference(copied)


def test_a_package_without_reference_loads(copied: Path) -> None:
    (copied / FILE).unlink()
    for name in ("torch", "onnx"):
        assert load_for_inference(copied, name).runtime.name == name
