"""Which images `swav embed` takes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from swav_platform.cli.embed import embed_images
from swav_platform.config import Config, from_tree
from swav_platform.data.datasets import open_or_build
from swav_platform.data.index.lookup import Index
from swav_platform.runs.folder import RunFolder
from tests.makers import write_tar


@pytest.fixture(autouse=True)
def _without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("swav_platform.evaluation.embed.embed_job", lambda *_, **__: None)
    monkeypatch.setattr("swav_platform.evaluation.embed.embed", lambda *_, **__: {"samples": 6, "labelled": 0})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two tars with 3 images each, `a/0 … a/2` and `b/0 … b/2`."""
    for name in "ab":
        write_tar(tmp_path / f"{name}.tar", [(f"{name}/{i}.jpg", b"jpg") for i in range(3)])
    return tmp_path


def learned(folder: Path, data: Mapping[str, Any]) -> RunFolder:
    """A run that learned from `data`."""
    run, config = RunFolder(folder / "run"), from_tree({"data": data})
    index = open_or_build(config.data, run.index)
    run.write(config, index=index.path, index_digest=index.digest, samples=index.samples)
    return run


def keys(index: Index) -> list[tuple[str, str | None]]:
    return [(line.key, line.label) for line in index.lines(range(index.samples))]


def test_labels_are_those_of_what_the_run_learned_from(folder: Path) -> None:
    (folder / "out.txt").write_text("a/1\n")
    sources = [{"pattern": f"{folder}/b.tar", "weight": 2}, {"pattern": f"pipe:cat {folder}/a.tar"}]
    run = learned(folder, {"sources": sources, "exclude": f"{folder}/out.txt", "allow_pipe": True})
    index, _ = embed_images(run, folder / "to", label="folder")
    assert keys(index) == [(key, key[0]) for key in ("b/0", "b/1", "b/2", "a/0", "a/2")]
    plain, _ = embed_images(run)
    assert [key for key, _ in keys(plain)] == [key for key, _ in keys(index)]


def test_a_source_without_labels_is_reported(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = learned(folder, {"sources": [f"{folder}/a.tar"]})
    embed_images(run, folder / "to", label="json:nowhere")
    assert "json:nowhere" in capsys.readouterr().err
    embed_images(run)
    assert capsys.readouterr().err == ""


def test_labels_where_a_run_was_given_an_index(folder: Path) -> None:
    open_or_build(Config().data.model_copy(update={"sources": (f"{folder}/a.tar",)}), folder / "ix")
    index, _ = embed_images(learned(folder, {"index": f"{folder}/ix"}), folder / "to", label="folder")
    assert keys(index) == [("a/0", "a"), ("a/1", "a"), ("a/2", "a")]


def test_other_images_may_come_from_commands_if_the_run_allows_it(folder: Path) -> None:
    run = learned(folder, {"sources": [f"{folder}/a.tar"], "allow_pipe": True})
    index, _ = embed_images(run, folder / "to", data=[f"pipe:cat {folder}/b.tar"])
    assert keys(index) == [("b/0", None), ("b/1", None), ("b/2", None)]
