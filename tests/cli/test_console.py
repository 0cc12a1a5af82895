"""What users named is shown as it is, whatever Rich would make of it; what they ask for is checked first."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from rich.table import Table

from swav_platform.atomic import write_text
from swav_platform.cli import console, data, pretrain, serve
from swav_platform.cli.main import run
from swav_platform.data.ledger.ledger import Ledger
from swav_platform.data.ledger.outcomes import Event, Outcome
from swav_platform.runs.folder import RunFolder
from swav_platform.runs.metrics import metrics_state

ODD = "trip [/b]/x [red] :smile: [link=a]"


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("SWAV_DEBUG", raising=False)


def test_answers_are_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    console.answer({"name": ODD, "shards": [ODD], "skipped": {ODD: 2}, "[/i]": None}, as_json=False)
    shown = capsys.readouterr().out
    assert shown.count(ODD) == 3
    assert "[/i]" in shown


def test_cells_are_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table("image", "why", box=None)
    console.add_row(table, ODD, "[/]")
    console.show(table)
    shown = capsys.readouterr().out
    assert ODD in shown
    assert "[/]" in shown


def test_lines_in_files_are_whole(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS")
    table = Table("image", "why", box=None)
    console.add_row(table, "x" * 300, "truncated")
    console.show(table)
    assert "x" * 300 + " truncated" in " ".join(capsys.readouterr().out.split())


def test_the_ledger_shows_odd_keys(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ledger = Ledger()
    ledger.add([Event(3, 0, 3, ODD, "s.tar", Outcome.CORRUPT, "[/x]", None)])
    data._show_ledger(ledger, tmp_path / "ledger.parquet")
    assert ODD in capsys.readouterr().out


@pytest.mark.parametrize(
    ("what", "item"),
    [
        ("neighbors", {"name": ODD, "neighbors": [{"key": ODD, "score": 0.5}]}),
        ("clusters", {"name": ODD, "clusters": [{"cluster": 1, "probability": 0.5}]}),
        ("embeddings", {"name": ODD, "error": {"message": "[/]"}}),
    ],
)
def test_answers_of_the_service_show_odd_names(what: str, item: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    serve._show(what, {"items": [item]})
    assert ODD in capsys.readouterr().out


def test_json_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    console.answer({"name": ODD}, as_json=True)
    assert json.loads(capsys.readouterr().out) == {"name": ODD}


def test_more_clusters_than_the_service_answers(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["query", "clusters", "x.jpg", "--k", "21"]) == 2
    assert "at most 20" in capsys.readouterr().err


@pytest.mark.parametrize("temperature", ["0", "-1"])
def test_temperature_must_be_positive(temperature: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["evaluate", "knn", "x", "--bank", "a", "--query", "b", "--temperature", temperature]) == 2
    assert "temperature" in capsys.readouterr().err


def test_plain_progress_says_a_step_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Steps within one pause: the first, and the last when the run ends; nothing of an earlier attempt, whose steps are made again."""
    (tmp_path / "run.json").write_text('{"run_id": "r"}')
    (tmp_path / "metrics.jsonl").write_text('{"step": 6, "loss": 1.5}\n')
    folder = RunFolder(tmp_path)
    looks: list[float] = []

    class Looks:
        def wait(self, seconds: float) -> bool:
            looks.append(seconds)
            if len(looks) > 1:
                write_text(folder.metrics, "".join(f'{{"step": {i}, "loss": 1.5}}\n' for i in range(min(len(looks) - 1, 3))))
            return len(looks) == 5

    display = pretrain.ProgressDisplay()
    monkeypatch.setattr(display, "_stop", Looks())
    display._follow(folder, 8, metrics_state(folder.path))
    assert capsys.readouterr().err.splitlines() == ["run_id r", "step 1/8 loss 1.500", "step 3/8 loss 1.500"]
