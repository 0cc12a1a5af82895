"""Wrong use and bad input: one paragraph, the right exit code, no traceback."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from swav_platform.cli.main import run


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SWAV_DEBUG", raising=False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("SWAV_OUT", str(tmp_path / "runs"))


def fails(capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, *said: str) -> None:
    assert run(arguments) == code
    error = capsys.readouterr().err
    assert "Traceback" not in error
    for part in said:
        assert part in error


def preset(root: Path) -> str:
    return str(root / "configs" / "pretrain" / "cifar10_cpu.yaml")


def test_no_such_verb(capsys: pytest.CaptureFixture[str]) -> None:
    fails(capsys, ["pretend"], 2, "pretend")


def test_config_with_a_typo(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fails(capsys, ["pretrain", preset(root), "--data", "x.tar", "train.stepz=1"], 2, "train.stepz", "train.steps")


def test_config_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    fails(capsys, ["pretrain", "none.yaml", "--data", "x.tar"], 2, "none.yaml")


def test_shell_expanded_pattern(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fails(capsys, ["pretrain", preset(root), "--data", "a.tar", "b.tar"], 2, "b.tar", "quote")


@pytest.mark.parametrize("pattern", ["/no/such/folder", "no-such-*.tar", "missing.tar"])
def test_pattern_without_a_match(root: Path, capsys: pytest.CaptureFixture[str], pattern: str) -> None:
    fails(capsys, ["pretrain", preset(root), "--data", pattern, "--name", "n"], 2, pattern)
    fails(capsys, ["index", pattern, "--out", "ix"], 2, pattern)


def test_tar_that_is_no_tar(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "page.tar").write_text("<html>404</html>" * 100)
    fails(capsys, ["index", "page.tar", "--out", "ix"], 1, "page.tar")


def test_no_data(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fails(capsys, ["pretrain", preset(root)], 2, "--data")


def test_no_permission(root: Path, shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fails(capsys, ["pretrain", preset(root), "--data", str(shards), "--out", "/proc/nothing", "--name", "n"], 1, "/proc/nothing")


def test_unknown_run(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (
        ["ledger", "nobody"],
        ["embed", "nobody"],
        ["evaluate", "knn", "nobody", "--bank", "a", "--query", "b"],
        ["serve", "nobody"],
    ):
        fails(capsys, arguments, 2, "nobody")


def test_ray_address_that_does_not_answer(
    root: Path, shards: Path, tiny: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fails(capsys, ["submit", preset(root), "--data", str(shards), "--address", "http://127.0.0.1:9"], 1, "127.0.0.1:9")
    fails(capsys, ["list", "--address", "http://127.0.0.1:9"], 1, "127.0.0.1:9")


def test_paths_of_this_machine_are_refused_for_another_cluster(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:  # an address that is not loopback is never contacted before paths are checked
        taken.bind(("127.0.0.1", 0))
    fails(capsys, ["submit", preset(root), "--data", "a-*.tar", "--address", "http://head.invalid:8265"], 1, "head.invalid")


def test_service_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.jpg").write_bytes(b"x")
    fails(capsys, ["query", "embeddings", "x.jpg", "--url", "http://127.0.0.1:9"], 1, "127.0.0.1:9")


def test_a_fault_of_ours_shows_its_traceback_only_with_debug(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import swav_platform.run_folder

    def broken(run: str, out: str | None = None) -> None:
        raise RuntimeError("boom")

    monkeypatch.setattr(swav_platform.run_folder, "find", broken)
    fails(capsys, ["ledger", "x"], 1, "boom", "--debug")
    with pytest.raises(RuntimeError):
        run(["ledger", "x", "--debug"])
