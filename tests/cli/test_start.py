"""What `swav pretrain` checks and says about its data before it trains. Ray is away, so that it ends there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from swav_platform.cli.main import run
from swav_platform.cluster import pretrain, session
from swav_platform.errors import UserError
from swav_platform.runs.folder import RunFolder
from tests.makers import smooth, write_tar


@pytest.fixture(autouse=True)
def _without_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_ray(config: object) -> None:
        raise UserError("Ray is away.")

    monkeypatch.chdir(tmp_path)
    for name in ("RAY_ADDRESS", "SWAV_DEBUG", "SWAV_OUT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr(session, "connected", no_ray)
    Path("recipe.yaml").touch()
    shard("x-0.tar", 0, 1, 2)


def shard(name: str, *pictures: int) -> str:
    return write_tar(Path(name), [(f"{number}.jpg", smooth(number)) for number in pictures])


def start(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The last line of a run that ends before it trains."""
    assert run(["pretrain", "recipe.yaml", "--name", "r", *arguments]) == 1
    return capsys.readouterr().err.splitlines()[-1]


def health() -> dict[str, str]:
    found: dict[str, str] = json.loads(Path("runs/r/health.json").read_text())
    return found


def test_shards_that_have_changed_stop_a_run(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    before = Path(shard("x-1.tar", 3, 4)).read_bytes()
    assert run(["index", "x-{0..1}.tar", "--out", "ix"]) == 0
    shard("x-1.tar", 4, 5, 6)
    said = start(capsys, "data.index=ix")
    assert "1 of 2 shards (x-1.tar)" in said
    assert "index it again" in said
    assert health()["state"] == "broken"
    assert run(["ledger", "r"]) == 1
    assert "x-1.tar" in capsys.readouterr().err
    Path("x-1.tar").write_bytes(before)  # with another time
    assert start(capsys, "data.index=ix") == "swav: Ray is away."
    assert not Path("runs/r/health.json").exists()


def test_a_run_goes_on_with_the_shards_that_it_began_with(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert start(capsys, "--data", "x-*.tar") == "swav: Ray is away."
    folder = RunFolder(tmp_path / "runs" / "r")
    known = folder.info()
    monkeypatch.setattr(pretrain, "known_run", lambda *_: folder.info())  # as if it had a checkpoint
    shard("x-1.tar", 3)
    assert start(capsys, "--data", "x-*.tar", "--resume") == "swav: Ray is away."
    assert "goes on with the 1 shards that it began with. The sources have new ones: x-1.tar (1)." in caplog.text
    Path("x-0.tar").rename("y-0.tar")
    shard("x-0.tar", 7, 8, 9)
    assert "x-0.tar" in start(capsys, "--data", "x-*.tar", "--resume")
    Path("y-0.tar").rename("x-0.tar")
    caplog.clear()
    for data in (["data.sources=[]"], [f"data.index={known['index']}"], ["data.index=runs/r/index"]):
        start(capsys, *data, "--resume")
        assert folder.info()["index_digest"] == known["index_digest"]
    assert "goes on with" not in caplog.text


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["data.missing=skip"], "Shards that do not exist, left out: 2 ("),
        (["data.missing=skip", "data.members=[png]"], "Images that --members or data.members does not choose: 3"),
        (["data.missing=skip", "data.images.max_pixels=200000000"], "raises the limits on decoding"),
    ],
)
def test_what_is_odd_is_said_at_the_start(
    settings: list[str], said: str, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    write_tar(Path("x-3.tar"), [("z.png", smooth(9, kind="PNG"))])
    assert start(capsys, "--data", "x-{0..3}.tar", *settings) == "swav: Ray is away."
    assert said in caplog.text
