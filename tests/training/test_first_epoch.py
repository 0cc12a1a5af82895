"""What is said of the first epoch's contents: the same through crashes, and however many ranks there are."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from swav_platform.data.ledger import contents as module
from swav_platform.data.ledger.contents import read_contents
from swav_platform.images.look import Look
from swav_platform.runs.storage import DiskFolder

SAMPLES = 200  # of 320 positions


def stream(rig: ModuleType, settings: Any, stop: int | None = None) -> Any:
    """Every fourth sample has the same bytes, every fifth is black."""

    def rows(first: int, last: int) -> Iterator[Any]:
        for number in range(first, last):
            if number == stop:
                raise ConnectionError("the machine is gone")
            row = rig.row(settings, number)
            row.sample = row.position % SAMPLES
            row.key = [f"k{sample}" for sample in row.sample]
            row.content = np.where(row.sample % 4 == 0, 77, row.sample + 1000).astype(np.uint64)
            row.look = np.where(row.sample % 5 == 0, Look.BLACK | Look.NARROW, 0).astype(np.uint8)
            yield row

    return rows


def train(rig: ModuleType, folder: Path, stop: int | None = None, resume: bool = False) -> Any:
    settings = rig.config()
    return rig.train(settings, folder, rows=stream(rig, settings, stop), samples=SAMPLES, resume=resume)


def test_copies_and_blank_images_are_told(rig: ModuleType, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    result = train(rig, tmp_path / "run")
    assert (result.copies, result.blank) == (50, 64)
    told = [record.getMessage() for record in caplog.records]
    assert any(text.startswith("50 of 200 images have the same bytes as others. List") for text in told)
    assert any(text.startswith("40 of 200 images are nearly black.") and "data.images.levels" in text for text in told)
    assert any("so far" in text for text in told), "many copies are told before the epoch ends"


def test_a_crash_changes_nothing(rig: ModuleType, tmp_path: Path) -> None:
    train(rig, tmp_path / "whole")
    with pytest.raises(ConnectionError):
        train(rig, tmp_path / "run", stop=45)
    result = train(rig, tmp_path / "run", resume=True)
    assert (result.copies, result.blank) == (50, 64)
    for ours, theirs in zip(*(read_contents(DiskFolder(tmp_path / name)).columns for name in ("whole", "run")), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_new_start_forgets_an_earlier_attempt(rig: ModuleType, tmp_path: Path) -> None:
    module.write_contents(DiskFolder(tmp_path / "run"), 9, module.Contents(*(np.ones(1, t) for t in "QQqB")))
    train(rig, tmp_path / "run")
    assert len(read_contents(DiskFolder(tmp_path / "run"))) == SAMPLES


def test_a_picture_everywhere_is_seen_in_a_set_too_large_to_compare(
    rig: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST", 20)
    result = train(rig, tmp_path / "run")
    found = read_contents(DiskFolder(tmp_path / "run"))
    assert result.copies == 50, "77 is not in the part that is compared"
    assert len(found) < SAMPLES
