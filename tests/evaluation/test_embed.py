"""Embedding sets: the same bytes whoever makes them and however often the making was killed; bad images; outages."""

from __future__ import annotations

import io
import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from swav_platform.config import Config, ImagePolicy, Model, ViewGroup
from swav_platform.data.index.build import build_index
from swav_platform.data.index.exclusions import Exclusions
from swav_platform.data.index.lookup import Index
from swav_platform.data.sets.read import has_set, open_set
from swav_platform.errors import UserError
from swav_platform.evaluation.embed import embed, embed_job
from swav_platform.evaluation.parts import EmbedJob
from swav_platform.failures import LogWaits
from swav_platform.models.encoders import build_encoder
from swav_platform.models.heads import projection_head
from swav_platform.models.package import save_package
from swav_platform.runs.storage import storage_of
from tests.makers import encoded, smooth, write_tar
from tests.s3 import S3Server

IMAGES = 200


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(3)
    model = Model(name="resnet_tiny", stem="small", stem_stride=2, projection_hidden=32, projection_dim=16)
    network = torch.nn.ModuleDict(
        {
            "encoder": (encoder := build_encoder(model)),
            "projection_head": projection_head(encoder.feature_dim, 32, 16),
            "prototypes": torch.nn.Linear(16, 12, bias=False),
        }
    )
    settings = Config(model=model, views={"all": ViewGroup(size=32, count=2, scale=(0.3, 1.0))})
    folder = tmp_path_factory.mktemp("package") / "model"
    return save_package(folder, network.state_dict(), settings, name="tiny", run="r", run_id="1", index_digest="i", codec="c")


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    """Two tars; image 3 of the first is no image, image 5 has EXIF data, images 7 and 9 are the same file."""
    folder = tmp_path_factory.mktemp("data")
    exif = Image.Exif()
    exif[0x010E] = "where the owner lives"
    told = encoded(Image.open(io.BytesIO(smooth(5))), "JPEG", exif=exif)
    for name in "ab":
        files = {f"{name}/{n:03d}.jpg": smooth(n + 1000 * (name == "b")) for n in range(IMAGES // 2)}
        if name == "a":
            files |= {"a/003.jpg": b"no image at all", "a/005.jpg": told, "a/009.jpg": files["a/007.jpg"]}
        write_tar(folder / f"{name}.tar", files.items())
    build_index([str(folder / "a.tar"), str(folder / "b.tar")], folder / "index", label="folder")
    return Index.open(folder / "index")


Make = Callable[..., EmbedJob]


@pytest.fixture(scope="module")
def make(package: Path, index: Index) -> Make:
    """A job with the target and options that are given."""
    return lambda target, **options: embed_job(package, index, target, ImagePolicy(), **options)


@pytest.fixture(scope="module")
def whole(make: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set that was made at one go, with thumbnails."""
    target = tmp_path_factory.mktemp("set")
    report = embed(make(target, thumbnails=True))
    assert (report["samples"], report["refused"], report["parts"]) == (IMAGES - 1, {"not_an_image": 1}, 4)
    return target


def contents(target: Path | str) -> dict[str, bytes]:
    storage = storage_of(target)
    return {name: storage.get(name) for name in storage.entries()}


def killed(job: EmbedJob, after: int) -> None:
    """Embeds in a process that gets SIGKILL when so many samples are encoded."""
    child = os.fork()
    if child == 0:
        embed(job, progress=lambda done, total: os.kill(os.getpid(), signal.SIGKILL) if done >= after else None)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL


def test_killed_three_times_and_resumed(make: Make, whole: Path, tmp_path: Path) -> None:
    job = make(tmp_path, thumbnails=True)
    for after in (70, 130, 199):
        killed(job, after)
        assert not has_set(tmp_path)
        with pytest.raises(UserError, match="incomplete"):
            open_set(tmp_path)
    (tmp_path / "part-00001.parquet").write_bytes(b"cut off")  # a disk that lost the end of a file
    embed(job)
    assert contents(tmp_path) == contents(whole)


def test_a_complete_set_is_not_made_again(make: Make, whole: Path, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in whole.glob("part-*")}
    assert embed(make(whole, thumbnails=True))["samples"] == IMAGES - 1
    assert {path: path.stat().st_mtime_ns for path in whole.glob("part-*")} == before


def test_another_recipe_replaces_the_set_and_nothing_else(make: Make, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    embed(make(tmp_path, thumbnails=True))
    embed(make(tmp_path, space="head"))
    made = open_set(tmp_path)
    assert (made.space, made.dim) == ("head", 16)
    assert not list(tmp_path.glob("thumbnails-*"))
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_lines(whole: Path, index: Index) -> None:
    table = pq.ParquetFile(whole / "part-00000.parquet").read()
    assert table["sample"].to_pylist() == list(range(64))
    assert table["outcome"].to_pylist() == ["ok"] * 3 + ["not_an_image"] + ["ok"] * 60
    assert (table["label"][0].as_py(), table["width"][0].as_py(), table["height"][0].as_py()) == ("a", 48, 40)
    assert table["content"][7] == table["content"][9] != table["content"][8]
    made = open_set(whole)
    samples = [n for batch in made.lines(["sample"]) for n in batch["sample"].to_pylist()]
    assert samples == [n for n in range(IMAGES) if n != 3]
    vectors = np.concatenate(list(made.vectors()))
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    fewer = [k for b in made.lines(["key"], Exclusions([(None, "a/000"), ("b.tar", "b/001")])) for k in b["key"].to_pylist()]
    assert len(fewer) == IMAGES - 3
    assert not {"a/000", "b/001"} & set(fewer)


def test_thumbnails_tell_nothing_but_the_picture(whole: Path) -> None:
    pictures = open_set(whole).pictures([5, 3])
    assert list(pictures) == [5]
    assert not Image.open(io.BytesIO(pictures[5])).getexif()
    assert b"where the owner lives" not in b"".join(contents(whole).values())


def test_int8(make: Make, whole: Path, tmp_path: Path) -> None:
    embed(make(tmp_path, dtype="int8"))
    exact, coarse = (np.concatenate(list(open_set(place).vectors())) for place in (whole, tmp_path))
    assert (exact * coarse).sum(1).min() > 0.9999


@pytest.mark.stack
def test_an_outage_of_the_bucket_is_waited_for(
    package: Path,
    index: Index,
    s3: S3Server,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The bucket has the images and gets the set."""
    monkeypatch.setattr("swav_platform.evaluation.parts.LogWaits", partial(LogWaits, quiet=0.5))
    monkeypatch.setattr("swav_platform.failures.LONGEST_PAUSE", 1.0)
    shards = s3.upload("embed", Path(index.place).parents[1])
    build_index([f"{shards}/a.tar", f"{shards}/b.tar"], tmp_path / "index")
    there = Index.open(tmp_path / "index")
    embed(embed_job(package, there, tmp_path / "set", ImagePolicy(), thumbnails=True))

    def stop(done: int, total: int) -> None:
        if done == 64:
            s3.stop()
            threading.Timer(3, s3.restore).start()

    with caplog.at_level(logging.WARNING, "swav"):
        embed(embed_job(package, there, "s3://embed/set", ImagePolicy(), thumbnails=True), progress=stop)
    assert "waiting for s3://embed/" in caplog.text
    assert "end of the wait" in caplog.text
    assert contents("s3://embed/set") == contents(tmp_path / "set")


def test_a_storage_that_stays_away_ends_the_job_resumably(make: Make, tmp_path: Path) -> None:
    target = tmp_path / "set"
    job = make(target, patience=0.0)

    def block(done: int, total: int) -> None:
        if done == 128:
            (target / "part-00001.parquet").mkdir()

    with pytest.raises(UserError, match=r"part-00001.parquet can't be used"):
        embed(job, progress=block)
    (target / "part-00001.parquet").rmdir()
    began = time.monotonic()
    assert embed(job)["samples"] == IMAGES - 1
    assert time.monotonic() - began < 60
