"""Finding runs by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from swav_platform.errors import UsageError
from swav_platform.runs.folder import find


def made(path: Path) -> Path:
    path.mkdir(parents=True)
    (path / "run.json").write_text("{}")
    return path


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SWAV_OUT", raising=False)


def test_a_name_is_found_where_runs_lie_and_one_folder_down(tmp_path: Path) -> None:
    below = made(tmp_path / "demo" / "first")
    assert find("first").path == below
    assert find("demo").path == below, "the only run in it"
    usual = made(tmp_path / "runs" / "first")
    assert find("first").path == usual
    assert find("demo/first").path == below


def test_with_out_only_that_folder_counts(tmp_path: Path) -> None:
    made(tmp_path / "demo" / "first")
    with pytest.raises(UsageError, match="first"):
        find("first", str(tmp_path / "else"))
    made(tmp_path / "first")
    wanted = made(tmp_path / "else" / "first")
    assert find("first", str(tmp_path / "else")).path == wanted


def test_several_are_not_chosen_from(tmp_path: Path) -> None:
    made(tmp_path / "a" / "first")
    made(tmp_path / "b" / "first")
    with pytest.raises(UsageError, match=r"a/first, b/first"):
        find("first")


def test_a_name_is_no_pattern(tmp_path: Path) -> None:
    made(tmp_path / "a" / "first")
    for name in ("fir*", "f[i]rst", "?irst"):
        with pytest.raises(UsageError, match="no run"):
            find(name)


def test_the_nearest_run_is_named(tmp_path: Path) -> None:
    made(tmp_path / "runs" / "photos")
    with pytest.raises(UsageError, match=r"no run 'fotos' .*Did you mean photos\?"):
        find("fotos")
