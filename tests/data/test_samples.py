from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swav_platform.data import samples as read
from swav_platform.data.index.lookup import IndexLine
from swav_platform.data.ledger.outcomes import Outcome
from swav_platform.data.samples import ReadFailure, read_samples

DATA = bytes(range(256)) * 40


def line(number: int, shard: Path | str, offset: int, size: int) -> IndexLine:
    return IndexLine(number, str(number), str(shard), offset, size, "jpg", None)


@settings(max_examples=60, deadline=None)
@given(
    ranges=st.lists(st.tuples(st.integers(0, 9000), st.integers(0, 1200), st.integers(0, 1)), max_size=20),
    gap=st.integers(0, 3000),
    longest=st.integers(1, 5000),
)
def test_any_ranges(tmp_path_factory: pytest.TempPathFactory, ranges: list[tuple[int, int, int]], gap: int, longest: int) -> None:
    folder = tmp_path_factory.mktemp("read")
    for shard in (0, 1):
        (folder / str(shard)).write_bytes(DATA[shard:])
    lines = [line(number, folder / str(shard), offset, size) for number, (offset, size, shard) in enumerate(ranges)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(read, "_GAP", gap)
        patch.setattr(read, "_LONGEST_READ", longest)
        found = read_samples(lines)
    assert found == {number: DATA[shard:][offset : offset + size] for number, (offset, size, shard) in enumerate(ranges)}


def test_neighbours_share_a_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x").write_bytes(bytes(10_000_000))
    reads: list[int] = []
    pread = os.pread

    def counted(descriptor: int, size: int, offset: int) -> bytes:
        reads.append(size)
        return pread(descriptor, size, offset)

    monkeypatch.setattr(os, "pread", counted)
    near = [line(n, tmp_path / "x", n * 2000, 1000) for n in range(50)]
    far = [line(50 + n, tmp_path / "x", 2_000_000 + n * 1_000_000, 1000) for n in range(3)]
    assert len(read_samples(far + near)) == 53
    assert len(reads) < 10


def test_a_bad_shard_fails_only_its_own_samples(tmp_path: Path) -> None:
    (tmp_path / "good").write_bytes(DATA)
    (tmp_path / "short").write_bytes(DATA[:100])
    found = read_samples(
        [
            line(0, tmp_path / "good", 5, 3),
            line(1, tmp_path / "gone", 0, 3),
            line(2, tmp_path / "short", 50, 50),
            line(3, tmp_path / "short", 80, 50),
            line(4, tmp_path, 0, 10),
        ]
    )
    assert found[0] == DATA[5:8]
    assert found[2] == DATA[50:100]
    for number, says in ((1, "No such file"), (3, "ends at byte 100"), (4, "directory")):
        failure = found[number]
        assert isinstance(failure, ReadFailure)
        assert says in failure.detail
        assert failure.outcome is Outcome.READ_ERROR


def test_samples_over_the_size_limit_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(DATA)
    found = read_samples([line(0, tmp_path / "x", 0, 1001), line(1, tmp_path / "x", 0, 1000)], max_bytes=1000)
    assert found[1] == DATA[:1000]
    assert isinstance(found[0], ReadFailure)
    assert found[0].outcome is Outcome.TOO_MANY_BYTES
