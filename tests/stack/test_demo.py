"""`swav demo` on a person's own folder, any names, broken files and all, and on the photographs it brings."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from mlflow.tracking import MlflowClient
from PIL import Image

from swav_platform.cli.demo_images import OwnImages, own_images
from swav_platform.cli.main import run
from swav_platform.data.ledger.ledger import Ledger
from swav_platform.data.sets.read import open_set
from tests.makers import encoded
from tests.mlflow_server import NOISE

pytestmark = pytest.mark.stack

KEYS = {
    *("images", "steps", "seconds", "images_per_second", "loss_first", "loss_last", "quarantined", "prototypes_used"),
    *("knn_top1", "knn_top1_random_init", "knn_top1_colour_histogram", "model_uri", "run_id", "report", "service_url", "ok"),
}
SMALL = [
    "views.large.size=16",
    "views.small.size=8",
    "model.projection_hidden=32",
    "model.projection_dim=16",
    "method.prototypes=12",
    "method.freeze_prototypes=2",
    "data.row_size=8",
    "train.batch=32",
    "train.checkpoint_every=3",
    "train.threads=1",
]
STEPS = 6  # of 32 positions: each of the 60 files comes three times

# key in the shard -> why it can't be used
BROKEN = {
    "odd ones/empty": "not_an_image",
    "odd ones/a letter": "not_an_image",
    "odd ones/cut off": "truncated",
    "odd ones/stamp%2Ev2": "too_small",
    "odd ones/strip": "extreme_aspect",
}


def jpeg(width: int, height: int) -> bytes:
    return encoded(Image.linear_gradient("L").resize((width, height)).convert("RGB"))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory, shards: Path) -> Path:
    """60 files that are called photos, five of them broken, and a text; nested, with every kind of name."""
    folder = tmp_path_factory.mktemp("home") / "my photos"
    names = [b"IMG %03d.jpg", b"v1.%d.final.jpg", b"DSC%05d.JPG", b"caf\xe9 %d.Jpeg", b"\xc3\xa9t\xc3\xa9-%d.jpeg"]
    with tarfile.open(sorted(shards.glob("*.tar"))[0]) as tar:
        for number, member in enumerate(tar.getmembers()[: 60 - len(BROKEN)]):
            content = tar.extractfile(member)
            assert content is not None
            place = folder / f"year {number % 3}" / f"trip.{number % 2}"
            place.mkdir(parents=True, exist_ok=True)
            (place / os.fsdecode(names[number % len(names)] % number)).write_bytes(content.read())
    odd = folder / "odd ones"
    odd.mkdir()
    (odd / "empty.jpg").touch()
    (odd / "a letter.jpg").write_text("Dear all, this is no photo.")
    (odd / "cut off.JPG").write_bytes(jpeg(64, 64)[:500])
    (odd / "stamp.v2.jpg").write_bytes(jpeg(4, 4))
    (odd / "strip.jpg").write_bytes(jpeg(640, 20))
    (folder / "notes.txt").write_text("Not one of the photos.")
    return folder


def demo(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    hidden = ("RAY_ADDRESS", "MLFLOW_TRACKING_URI", "SWAV_OUT", "SWAV_DEBUG")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    return subprocess.run(
        [sys.executable, "-m", "swav_platform", "demo", "--json", *arguments],
        capture_output=True,
        text=True,
        timeout=900,
        cwd=folder,
        env=environment,
    )


@dataclass(frozen=True)
class Shown:
    place: Path
    result: dict[str, Any]


@pytest.fixture(scope="module")
def shown(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Shown:
    folder = tmp_path_factory.mktemp("demo")
    done = demo(folder, "--data", str(photos), *SMALL, f"train.steps={STEPS}")
    assert done.returncode == 0, done.stderr
    assert NOISE.findall(done.stderr) == [], done.stderr
    return Shown(folder / "swav-demo", json.loads(done.stdout.splitlines()[-1]))


def test_what_it_tells(shown: Shown) -> None:
    assert set(shown.result) >= KEYS
    assert json.loads((shown.place / "demo.json").read_text()) == shown.result
    assert shown.result["ok"] is True
    assert (shown.result["steps"], shown.result["images"]) == (STEPS, 32 * STEPS)
    assert shown.result["knn_top1"] is None, "these photos have no labels"
    assert 1 <= shown.result["prototypes_used"] <= 12
    assert (shown.place / "mlflow.db").is_file()
    answers = shown.result["answers"]
    assert len(answers["neighbors"]) == 5
    assert answers["embedding_dim"] == 256


def test_each_broken_file_is_in_the_ledger(shown: Shown) -> None:
    ledger = Ledger.read(shown.place / "demo" / "ledger")
    assert {event.key: event.outcome.word for event in ledger.events()} == BROKEN
    assert shown.result["quarantined"] == ledger.quarantined >= len(BROKEN)


def test_every_photo_is_embedded_whatever_its_name(shown: Shown) -> None:
    made = open_set(shown.place / "demo" / "embeddings")
    keys = [key for batch in made.lines(["key"]) for key in batch["key"].to_pylist()]
    assert len(set(keys)) == len(keys) == 60 - len(BROKEN)
    assert sum(made.manifest["refused"].values()) == len(BROKEN)
    assert "year 0/trip.1/caf%E9 3" in keys
    assert "year 1/trip.1/v1%2E1%2Efinal" in keys


def test_the_report_shows_photos(shown: Shown) -> None:
    page = (shown.place / "report.html").read_text()
    assert page.count('src="data:image/jpeg;base64,') >= 20
    assert Path(shown.result["report"]) == shown.place / "report.html"


def test_the_set_is_searched_cleaned_and_mapped(shown: Shown) -> None:
    page, place = (shown.place / "report.html").read_text(), shown.place / "demo" / "embeddings"
    assert f"serve {shown.place / 'demo'}" in page
    assert 'href="http://127.0.0.1:8000/"' in page
    for name in ("duplicates.html", "outliers.html"):
        assert f'href="{name}"' in page
        assert (shown.place / name).is_file()
    assert pq.read_table(place / "map.parquet").num_rows == 60 - len(BROKEN)
    dropped = (shown.place / "duplicates.txt").read_text().splitlines()
    assert len(dropped) == shown.result["near_duplicates"]
    assert pq.read_table(shown.place / "weights.parquet").num_rows == 60 - len(BROKEN)
    assert pq.read_table(place / "outliers.parquet").num_rows == shown.result["outliers"]
    assert (place.with_name("embeddings-neighbours") / "manifest.json").is_file()


@pytest.mark.long
def test_again_with_the_photographs_it_brings_it_replaces_the_earlier_one(shown: Shown) -> None:
    left = shown.place / "left behind"
    left.touch()
    done = demo(shown.place.parent, *SMALL, "train.steps=2", "train.workers=1")
    assert done.returncode == 0, done.stderr
    result = json.loads((shown.place / "demo.json").read_text())
    assert (result["steps"], result["quarantined"]) == (2, 0)
    assert result["run_id"] != shown.result["run_id"]
    assert not left.exists()
    scores = [result[name] for name in ("knn_top1", "knn_top1_random_init", "knn_top1_colour_histogram")]
    assert all(0 < score <= 100 for score in scores)
    assert result["ok"] is (scores[0] > max(scores[1:]))
    tracked = MlflowClient(f"sqlite:///{shown.place / 'mlflow.db'}").get_metric_history(result["run_id"], "eval/knn_top1")
    assert [(metric.step, metric.value) for metric in tracked] == [(2, scores[0])]


def test_a_folder_of_something_else_is_left_alone(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter 1.tex").write_text("precious")
    done = demo(tmp_path, "--data", str(photos), "--out", "thesis")
    assert done.returncode == 2
    assert "thesis is not empty" in done.stderr
    assert [path.name for path in (tmp_path / "thesis").iterdir()] == ["chapter 1.tex"]


@pytest.fixture
def earlier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of an earlier demo, in the current one, with a shard in it."""
    monkeypatch.chdir(tmp_path)
    place = tmp_path / "swav-demo"
    (place / "shards").mkdir(parents=True)
    (place / ".swav-demo").touch()
    (place / "shards" / "shard-000000.tar").touch()
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "a.txt").write_text("No photo.")
    return place


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train.stepz=1"], "train.stepz"),
        (["--data", "phtoos"], "phtoos"),
        (["--data", "words"], "neither tars nor images"),
        (["--data", "."], "those of an earlier demo"),
        (["--data", "swav-demo/shards"], "the demo replaces"),
        (["--data", "*/shards/*.tar"], "the demo replaces"),
    ],
)
def test_an_earlier_demo_outlives_a_slip(
    earlier: Path, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["demo", *arguments]) == 2
    assert said in capsys.readouterr().err
    assert (earlier / "shards" / "shard-000000.tar").is_file()


def test_what_a_folder_is_taken_for(photos: Path, shards: Path, earlier: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert own_images(str(photos), earlier) == OwnImages(str(photos), packed=True)
    assert own_images(str(shards), earlier) == OwnImages(str(shards), packed=False)
    pattern = str(shards / "pictures-{000000..000001}.tar")
    assert own_images(pattern, earlier) == OwnImages(pattern, packed=False)
    assert capsys.readouterr().err == ""

    mixed = earlier.parent / "mixed"
    mixed.mkdir()
    (mixed / "without a suffix").write_bytes(jpeg(32, 32))
    (mixed / "backup.TAR").touch()
    assert own_images("mixed", earlier) == OwnImages(str(mixed), packed=True)
    assert "ignored" in capsys.readouterr().err
    assert own_images(".", earlier).packed, "an earlier demo in the folder is neither its images nor its tars"
