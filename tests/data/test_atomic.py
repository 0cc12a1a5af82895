from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from swav_platform.data.atomic import replacing
from swav_platform.errors import UserError


def write(path: Path, text: str, error: Exception | None = None) -> None:
    with replacing(path) as aside:
        aside.write_text(text)
        if error is not None:
            raise error


def test_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    write(path, "one")
    with pytest.raises(RuntimeError):
        write(path, "half", RuntimeError())
    assert path.read_text() == "one"
    assert os.listdir(path.parent) == ["file"]


def test_a_full_disk_is_said_and_costs_nothing(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write(path, "one")
    with pytest.raises(UserError, match=r"file could not be written \(No space left on device\): free some space"):
        write(path, "half", OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    assert path.read_text() == "one"
    assert os.listdir(tmp_path) == ["file"]
