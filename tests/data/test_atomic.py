from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from swav_platform.data.atomic import replacing
from swav_platform.errors import UserError


def test_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    with replacing(path) as aside:
        aside.write_text("one")
        assert not path.exists()
    with pytest.raises(RuntimeError), replacing(path) as aside:
        aside.write_text("half")
        raise RuntimeError
    assert path.read_text() == "one"
    assert os.listdir(path.parent) == ["file"]


def test_a_full_disk_is_said_and_costs_nothing(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("one")
    with (
        pytest.raises(UserError, match=r"file could not be written \(No space left on device\): free some space"),
        replacing(path) as aside,
    ):
        aside.write_text("half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert path.read_text() == "one"
    assert os.listdir(tmp_path) == ["file"]
