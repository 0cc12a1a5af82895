"""The Python API: the vectors of `swav embed` and the service, for every form of input, with errors that name the image."""

from __future__ import annotations

import doctest
import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient
from PIL import Image

import swav_platform
from services.embeddings.app import create_app
from services.embeddings.settings import ServiceSettings
from swav_platform.config import Config, ImagePolicy
from swav_platform.data.index.build import build_index
from swav_platform.data.index.lookup import Index
from swav_platform.data.ledger.outcomes import Outcome
from swav_platform.data.samples import read_samples
from swav_platform.data.sets.read import open_set
from swav_platform.encoder import Encoder, ImageError
from swav_platform.errors import UsageError, UserError
from swav_platform.evaluation.embed import embed, embed_job
from swav_platform.images.decoding.decode import decode
from swav_platform.registry import register_package, start_run
from swav_platform.runs.folder import RunFolder


@pytest.fixture(scope="module")
def encoder(work: Path) -> Encoder:
    return swav_platform.load(work / "runs" / "mine")


@pytest.fixture(scope="module")
def service(work: Path) -> TestClient:
    with TestClient(create_app(ServiceSettings(model=work / "runs" / "mine" / "model"))) as client:
        yield client


def test_every_input_form_gives_the_same_vector(encoder: Encoder, draw: Callable[..., bytes], work: Path) -> None:
    data = draw(1, "PNG")
    forms = [work / "other.png", str(work / "other.png"), data, Image.open(io.BytesIO(data)), decode(data, ImagePolicy())]
    vectors = encoder.embed(forms)
    assert vectors.shape == (5, encoder.dim)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(vectors, vectors[:1].repeat(5, 0), atol=1e-6)


def test_orientation_and_transparency_of_a_pillow_image(encoder: Encoder, draw: Callable[..., bytes]) -> None:
    exif, turned, clear = Image.Exif(), io.BytesIO(), io.BytesIO()
    exif[0x0112] = 6
    picture = Image.open(io.BytesIO(draw(2, "PNG")))
    picture.save(turned, "PNG", exif=exif)
    picture.putalpha(90)
    picture.save(clear, "PNG")
    for file in (turned.getvalue(), clear.getvalue()):
        from_bytes, from_pillow = encoder.embed([file, Image.open(io.BytesIO(file))])
        np.testing.assert_allclose(from_bytes, from_pillow, atol=1e-6)


def test_same_vectors_as_swav_embed(encoder: Encoder, work: Path, shards: Path, tmp_path: Path) -> None:
    build_index([str(path) for path in sorted(shards.glob("*.tar"))], tmp_path / "index")
    index = Index.open(tmp_path / "index")
    embed(embed_job(work / "runs" / "mine" / "model", index, tmp_path / "embeddings", ImagePolicy()))
    made = open_set(tmp_path / "embeddings")
    stored = np.concatenate(list(made.vectors()))
    clusters = [number for batch in made.lines(["cluster"]) for number in batch["cluster"].to_pylist()]
    lines = index.lines(range(index.samples))
    contents = read_samples(lines, max_bytes=10**6)
    images = [contents[line.number] for line in lines]
    np.testing.assert_allclose(encoder.embed(images), stored, atol=1e-3)  # stored as float16
    assert encoder.clusters(images).clusters[:, 0].tolist() == clusters


def test_same_answers_as_the_service(encoder: Encoder, service: TestClient, draw: Callable[..., bytes]) -> None:
    images = [draw(seed) for seed in range(5)]
    files = [("images", image) for image in images]
    items = service.post("/v1/embeddings", files=files).json()["items"]
    np.testing.assert_allclose(encoder.embed(images), [item["embedding"] for item in items], atol=1e-5)
    items = service.post("/v1/clusters?top=4", files=files).json()["items"]
    found = encoder.clusters(images, top=4)
    for name, own in (("cluster", found.clusters), ("score", found.scores), ("probability", found.probabilities)):
        np.testing.assert_allclose(own, [[c[name] for c in item["clusters"]] for item in items], atol=1e-5)
    assert service.get("/v1/models").json()["models"][0]["digest"] == encoder.digest


def test_clusters(encoder: Encoder, draw: Callable[..., bytes]) -> None:
    clusters, scores, probabilities = encoder.clusters([draw(seed) for seed in range(3)], top=100)
    assert clusters.shape == scores.shape == probabilities.shape == (3, 11)  # there are no more
    assert (np.diff(scores) <= 0).all()
    np.testing.assert_allclose(probabilities.sum(1), 1)
    assert encoder.clusters([], top=2).clusters.shape == (0, 2)
    with pytest.raises(ValueError, match="top"):
        encoder.clusters([draw(0)], top=0)


def test_a_model_without_prototypes(make_run: Callable[..., RunFolder], tmp_path: Path, draw: Callable[..., bytes]) -> None:
    make_run(tmp_path / "simclr", "simclr")
    encoder = swav_platform.load(tmp_path / "simclr")
    assert len(encoder.embed([draw(0)])) == 1
    with pytest.raises(UserError, match="prototypes"):
        encoder.clusters([draw(0)])


def test_more_images_than_a_batch_keep_their_order(encoder: Encoder, draw: Callable[..., bytes]) -> None:
    images = [draw(seed % 7) for seed in range(150)]
    vectors = encoder.embed(images)
    np.testing.assert_allclose(vectors, encoder.embed(images[:7])[np.arange(150) % 7], atol=1e-5)
    assert encoder.embed([]).shape == (0, encoder.dim)


def test_transform_and_module(encoder: Encoder, work: Path) -> None:
    pixels = encoder.transform(work / "photo.jpg")
    assert pixels.shape == (3, encoder.input_size, encoder.input_size)
    assert pixels.dtype == torch.float32
    assert isinstance(encoder.module, torch.nn.Module)
    assert not encoder.module.training
    with torch.inference_mode():
        features = encoder.module(pixels[None])
    expected = torch.nn.functional.normalize(features, dim=1).numpy()
    np.testing.assert_allclose(encoder.to("cpu").embed([work / "photo.jpg"]), expected, atol=1e-5)
    assert encoder.to("cpu") is encoder


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu(work: Path, draw: Callable[..., bytes]) -> None:
    images = [draw(seed) for seed in range(3)]
    on_gpu = swav_platform.load(work / "runs" / "mine", device="cuda")
    assert next(on_gpu.module.parameters()).is_cuda
    on_cpu = swav_platform.load(work / "runs" / "mine")
    np.testing.assert_allclose(on_gpu.embed(images), on_cpu.embed(images), atol=1e-2)
    assert on_gpu.clusters(images).clusters.shape == (3, 1)


def test_bad_images_are_named(encoder: Encoder, draw: Callable[..., bytes], work: Path, tmp_path: Path) -> None:
    good = draw(0)
    absent, text = tmp_path / "absent.jpg", tmp_path / "notes.txt"
    text.write_text("text")
    tiny = np.zeros((4, 4, 3), np.uint8)
    damaged = Image.open(io.BytesIO(draw(1, "PNG")[:500]))
    cases = [
        (absent, Outcome.READ_ERROR, str(absent)),
        (text, Outcome.NOT_AN_IMAGE, str(text)),
        (good[:300], Outcome.TRUNCATED, "300 bytes"),
        (tiny, Outcome.TOO_SMALL, "array"),
        (damaged, Outcome.CORRUPT, "Pillow"),
    ]
    for image, outcome, source in cases:
        with pytest.raises(ImageError) as caught:
            encoder.embed([good, image, good])
        assert (caught.value.index, caught.value.outcome) == (1, outcome)
        assert "images[1]" in str(caught.value)
        assert source in str(caught.value)
        assert outcome.word in str(caught.value)


@pytest.mark.parametrize("images", ["photo.jpg", b"bytes", Path("photo.jpg"), np.zeros((2, 32, 32, 3), np.uint8), None])
def test_only_lists_are_accepted(encoder: Encoder, images: object) -> None:
    with pytest.raises(TypeError, match="list"):
        encoder.embed(images)


@pytest.mark.parametrize("image", [3, None, np.zeros((32, 32), np.uint8), np.zeros((32, 32, 3), np.float32), [b"a"]])
def test_objects_that_are_no_images(encoder: Encoder, image: object) -> None:
    with pytest.raises(TypeError, match=r"images\[0\]"):
        encoder.embed([image])


def test_load_by_name_folder_and_package(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(work)
    monkeypatch.delenv("SWAV_OUT", raising=False)
    sources = ["mine", "runs/mine", work / "runs" / "mine" / "model"]
    assert len({swav_platform.load(source).digest for source in sources}) == 1
    with pytest.raises(UsageError, match=r"Did you mean mine"):
        swav_platform.load("mien")
    with pytest.raises(UserError, match="MLFLOW_TRACKING_URI"):
        swav_platform.load("models:/tiny@candidate")


def test_a_run_applies_its_own_limits(work: Path, make_run: Callable[..., RunFolder], tmp_path: Path) -> None:
    run = make_run(tmp_path / "strict")
    settings = run.config().model_dump(mode="json")
    settings["data"]["images"]["max_pixels"] = 100
    run.write(Config.model_validate(settings), index=run.index, index_digest="i", samples=0)
    with pytest.raises(ImageError, match="too_many_pixels"):
        swav_platform.load(run.path).embed([work / "photo.jpg"])


def test_a_run_without_a_model(make_run: Callable[..., RunFolder], tmp_path: Path) -> None:
    run = make_run(tmp_path / "early")
    (run.package / "model.json").unlink()
    with pytest.raises(UserError, match="has no model yet"):
        swav_platform.load(run.path)


def test_load_from_mlflow(work: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    config = Config.model_validate({"run": {"name": "tiny", "out": str(tmp_path)}, "tracking": {"uri": uri}})
    run_id = start_run(config, None, {}, {})
    version = register_package(uri, run_id, work / "runs" / "mine" / "model", "tiny")
    assert swav_platform.load("models:/tiny@candidate", tracking_uri=uri).digest == encoder.digest
    assert swav_platform.load(version, out=str(tmp_path)).digest == encoder.digest  # the store beside the runs
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert swav_platform.load(f"runs:/{run_id}/model").digest == encoder.digest
    with pytest.raises(UserError, match="MLflow"):
        swav_platform.load("models:/absent@candidate")


def test_the_import_is_light_and_names_are_public(root: Path) -> None:
    code = """
import json, sys, time
start = time.perf_counter(); import swav_platform; seconds = time.perf_counter() - start
heavy = [name for name in ("torch", "numpy", "mlflow", "ray", "httpx") if name in sys.modules]
listed = dir(swav_platform)
from swav_platform import Encoder, Method, client, load
client.Client
print(json.dumps([seconds, heavy, sorted(set(swav_platform.__all__) - set(listed)), Encoder is swav_platform.Encoder]))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    seconds, heavy, unlisted, same = json.loads(done.stdout)
    assert seconds < 0.1
    assert (heavy, unlisted, same) == ([], [], True)
    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        _ = swav_platform.nothing_of_the_kind


def test_examples_in_docstrings(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(work)
    example = doctest.DocTestParser().get_doctest(swav_platform.__doc__ or "", {}, "swav_platform", None, 0)
    assert example.examples
    assert doctest.DocTestRunner().run(example).failed == 0
