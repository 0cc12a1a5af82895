"""Groups of images with equal bytes, and their parts in the folder of a run."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from swav_platform.data.ledger.contents import MOST, Contents, read_contents, share_of, write_contents
from swav_platform.runs.storage import DiskFolder


def contents(*lines: tuple[int, int, int]) -> Contents:
    """(content, name, sample) of each image."""
    columns = np.array(lines, np.int64).reshape(-1, 3).T
    return Contents.of([columns[0].astype(np.uint64), columns[1].astype(np.uint64), columns[2], np.zeros(len(lines), np.uint8)])


def test_groups() -> None:
    found = contents((7, 1, 10), (5, 2, 3), (7, 3, 4), (9, 4, 0), (7, 5, 8), (5, 6, 20))
    assert found.copied == 5
    assert [group.tolist() for group in found.groups] == [[4, 8, 10], [3, 20]]


def test_an_oversampled_image_is_no_copy_of_itself() -> None:
    found = contents((7, 1, 10), (7, 1, 2), (7, 1, 11))
    assert (len(found), found.copied, found.groups) == (1, 0, [])
    assert found.sample.tolist() == [2]


def test_nothing() -> None:
    assert (len(contents()), contents().copied, contents().groups) == (0, 0, [])
    assert (contents() + contents((1, 1, 1))).sample.tolist() == [1]


def test_parts_may_repeat(tmp_path: Path) -> None:
    storage = DiskFolder(tmp_path)
    assert len(read_contents(storage)) == 0
    write_contents(storage, 3, contents((7, 1, 10), (2**63 - 1, 2, 3)))
    write_contents(storage, 6, contents((7, 1, 10), (7, 9, 4)))
    found = read_contents(storage)
    assert (len(found), [group.tolist() for group in found.groups]) == (3, [[4, 10]])


def test_memory_is_bounded() -> None:
    assert [share_of(n) for n in (1, MOST, MOST + 1, 2 * MOST, 2 * MOST + 1, 10**9)] == [1, 1, 2, 2, 4, 256]
