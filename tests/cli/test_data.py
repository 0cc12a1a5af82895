"""swav index, pack and ledger, as they are called."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from swav_platform.cli.main import run
from swav_platform.config import Config
from swav_platform.data.ledger.contents import Contents, write_contents
from swav_platform.data.ledger.ledger import Ledger
from swav_platform.data.ledger.outcomes import Event, Outcome
from swav_platform.data.ledger.parts import LedgerWriter
from swav_platform.images.look import Look
from swav_platform.runs.folder import RunFolder
from tests.makers import encoded, write_tar


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_tar(Path("x.tar"), [(name, b"x") for name in ("a.jpg", "b.jpg", "c.jpg", "README")])


def said(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> dict[str, object]:
    capsys.readouterr()
    assert run([*arguments, "--json"]) == code
    found: dict[str, object] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return found


def test_index_and_its_versions(capsys: pytest.CaptureFixture[str]) -> None:
    first = said(capsys, "index", "x.tar", "--out", "ix")
    assert first["samples"] == 3
    assert first["skipped"] == {"no_image": 1}
    Path("gone.txt").write_text("b\n")
    after = said(capsys, "index", "--out", "ix", "--exclude", "gone.txt")
    assert (after["samples"], after["bytes_read"]) == (2, 0)
    assert said(capsys, "index", "--out", "ix", "--verify")["ok"]
    write_tar(Path("x.tar"), [])
    assert not said(capsys, "index", "--out", "ix", "--verify", code=1)["ok"]


def test_lines_of_a_list_that_take_nothing_out_are_said(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    Path("gone.txt").write_text("\ufeffb\nc.jpg\nx.tar\ta\ny.tar\tc\n", encoding="utf-8")
    for _ in range(2):
        after = said(capsys, "index", "x.tar", "--out", "ix", "--exclude", "gone.txt")
        assert (after["samples"], after["unmatched"]) == (1, 2)
        assert "2 lines of the exclusion list match no sample (c.jpg, y.tar<tab>c)" in caplog.text
        caplog.clear()
    for covered in ("a", "x.tar\tb"):
        Path("gone.txt").write_text(covered)
        assert said(capsys, "index", "--out", "ix", "--exclude", "gone.txt")["unmatched"] == 0


def test_an_index_runs_no_command_unasked(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWAV_CACHE", "cache")
    command = "pipe:touch ran; cat x.tar"
    assert run(["index", command, "--out", "ix", "--allow-pipe"]) == 0
    shutil.rmtree("cache")
    Path("ran").unlink()
    pretrain = ["pretrain", str(Path(__file__).parents[2] / "configs/pretrain/small.yaml"), "data.index=ix"]
    for verb in (["index", "--out", "ix"], ["index", "--out", "ix", "--verify"], [*pretrain, "--dry-run"], pretrain):
        assert run(verb) == 2
        assert "ix is a shell command" in capsys.readouterr().err.replace("\n", " ")
    assert not Path("ran").exists()
    assert not Path("runs").exists()
    assert run(["index", "--out", "ix", "--verify", "--allow-pipe"]) == 0
    assert Path("ran").exists()


def test_what_was_skipped_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["index", "x.tar", "--out", "ix"]) == 0
    assert "no_image: README" in capsys.readouterr().err


def test_index_of_a_wids_list(capsys: pytest.CaptureFixture[str]) -> None:
    Path("w.json").write_text(json.dumps({"shardlist": [{"url": "x.tar", "nsamples": 4}]}))
    assert run(["index", "--from-wids", "w.json", "--out", "ix"]) == 0
    assert "x.tar has 3 images; the wids index says 4." in capsys.readouterr().err.replace("\n", " ")


def test_pack_into_itself_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    Path("photos").mkdir()
    Path("photos/a.jpg").write_bytes(b"x")
    assert run(["pack", "photos", "--out", "./photos"]) == 2
    assert "choose another one for the shards" in capsys.readouterr().err


@pytest.fixture
def mine(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "runs" / "mine")
    folder.write(Config(), index=tmp_path / "ix" / "version-1", index_digest="d", samples=4)
    events = [(0, 0, 1, "a<b>"), (5, 0, 1, "a<b>"), (5, 1, 2, "two"), (9, 0, 3, "three")]
    Ledger(Event(p, n, s, key, f"{s % 2}.tar", Outcome.CORRUPT, "why", b"jpg") for p, n, s, key in events).write(
        folder.path / "ledger.parquet"  # as older versions wrote it
    )
    return folder


def test_the_ledger_counts_samples(mine: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    found = said(capsys, "ledger", "mine", "--out", "runs")
    assert (found["outcomes"], found["samples"], found["positions"]) == ({"corrupt": 3}, 3, {"corrupt": 3})
    assert found["shards"] == [
        {"shard": "1.tar", "count": 2, "reasons": {"corrupt": 2}},
        {"shard": "0.tar", "count": 1, "reasons": {"corrupt": 1}},
    ]
    assert found["images"] == [
        {"key": key, "shard": shard, "reason": "corrupt", "detail": "why"}
        for key, shard in (("a<b>", "1.tar"), ("two", "0.tar"), ("three", "1.tar"))
    ]


def test_the_ledger_as_a_page_without_what_was_taken_out(
    mine: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["ledger", "mine", "--out", "runs", "--html", "bad.html"]) == 0
    page = Path("bad.html").read_text()
    assert page.count("<img") == 3
    assert "a&lt;b&gt;" in page
    assert "<b>a<b>" not in page
    Path("gone.txt").write_text("three\n")
    said(capsys, "index", "x.tar", "--out", "ix")
    from swav_platform.data.index.exclusions import Exclusions

    Exclusions.of_file("gone.txt").write(tmp_path / "ix")
    assert run(["ledger", "mine", "--out", "runs", "--html", "bad.html"]) == 0
    assert Path("bad.html").read_text().count("<img") == 2
    assert sum(event.thumbnail is not None for event in Ledger.read(mine.ledger).events()) == 2


@pytest.fixture
def seen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> RunFolder:
    """A run whose first epoch had two copies, a black image and an ordinary one."""
    write_tar(
        Path("y.tar"), [(f"{key}.png", encoded(Image.new("RGB", (40, 30), colour), "PNG")) for key, colour in COLOURS.items()]
    )
    said(capsys, "index", "y.tar", "--out", "iy")
    folder = RunFolder(tmp_path / "runs" / "seen")
    folder.write(Config(), index=tmp_path / "iy", index_digest="d", samples=4)
    LedgerWriter(folder.path).open(0)
    looks = np.array([0, 0, Look.BLACK, Look.CONSTANT], np.uint8)
    columns = [np.array([5, 5, 6, 7], np.uint64), np.arange(4, dtype=np.uint64), np.arange(4), looks]
    write_contents(folder.storage, 1, Contents.of(columns))
    return folder


COLOURS = {"one": "red", "two": "red", "night": "black", "plain": "green"}


def test_the_ledger_shows_copies_and_odd_images(seen: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    assert said(capsys, "ledger", "seen", "--out", "runs")["odd"] == {"copies": 2, "black": 1, "constant": 1}
    assert run(["ledger", "seen", "--out", "runs", "--html", "odd.html"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if "first epoch" in line] == [
        "2 images of the first epoch have the same bytes as others: one",
        "1 images of the first epoch are nearly black: night",
        "1 images of the first epoch have one colour: plain",
    ]
    page = Path("odd.html").read_text()
    assert page.count("<img") == 3
    assert "2 images have these bytes" in page


def test_copies_are_listed_as_index_takes_them(seen: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert run(["ledger", "seen", "--out", "runs", "--duplicates", "--weights", "w.csv"]) == 0
    listed = capsys.readouterr().out
    assert listed == "y.tar\ttwo\n"
    Path("copies.txt").write_text(listed)
    assert said(capsys, "index", "y.tar", "--out", "iz", "--weights", "w.csv")["samples"] == 3
    assert said(capsys, "index", "y.tar", "--out", "iz", "--exclude", "copies.txt")["samples"] == 3


def test_a_ledger_without_its_index_is_shown(seen: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree("iy")
    assert run(["ledger", "seen", "--out", "runs"]) == 0
    answer = capsys.readouterr()
    assert "Bad images: none" in answer.out
    assert "Copies and odd images are not shown" in answer.err


def test_a_log_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["ledger", "--check", "nowhere"]) == 2
    assert "nowhere" in capsys.readouterr().err


def test_packing_says_what_no_run_decodes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("in").mkdir()
    for name in ("a.heic", "b.heic", "c.jpg"):
        Path("in", name).write_bytes(b"x")
    assert said(capsys, "pack", "in", "--out", "packed")["undecoded"] == {"heic": 2}
    assert run(["pack", "in", "--out", "packed"]) == 0
    assert "2 heic" in capsys.readouterr().err
