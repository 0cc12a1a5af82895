from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

from swav_platform.atomic import replacing, write_text
from swav_platform.errors import UserError


def write(path: Path, text: str, error: Exception | None = None) -> None:
    with replacing(path) as aside:
        aside.write_text(text)
        if error is not None:
            raise error


def test_a_failed_write_keeps_the_old_content(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    write(path, "one")
    with pytest.raises(RuntimeError):
        write(path, "half", RuntimeError())
    assert path.read_text() == "one"
    assert os.listdir(path.parent) == ["file"]


def test_a_full_disk_is_reported_and_keeps_the_old_content(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write(path, "one")
    with pytest.raises(UserError, match=r"file could not be written \(No space left on device\): free some space"):
        write(path, "half", OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    assert path.read_text() == "one"
    assert os.listdir(tmp_path) == ["file"]


def test_a_file_in_the_place_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match=r"remove .* or choose another folder"):
        write(tmp_path / "file" / "below", "text")
    assert (tmp_path / "file").read_text() == "mine"


def test_concurrent_writers_leave_one_complete_text(tmp_path: Path) -> None:
    texts = [str(i) * 100_000 for i in range(4)]
    writers = [threading.Thread(target=write_text, args=(tmp_path / "x.json", text)) for text in texts]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert (tmp_path / "x.json").read_text() in texts
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]
