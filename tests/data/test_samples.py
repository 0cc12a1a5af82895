from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swav_platform import failures
from swav_platform.data import outages as outages_module
from swav_platform.data import samples as read
from swav_platform.data.index.build import build_index
from swav_platform.data.index.lookup import Index, IndexLine
from swav_platform.data.ledger.outcomes import Outcome
from swav_platform.data.outages import Outages
from swav_platform.data.samples import ReadCounts, ReadFailure, read_samples
from swav_platform.failures import Kind, MachineFault, Wait
from tests.makers import write_tar

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


def test_damaged_content_fails_only_its_own_samples(tmp_path: Path) -> None:
    (tmp_path / "good").write_bytes(DATA)
    (tmp_path / "short").write_bytes(DATA[:100])
    found = read_samples(
        [line(0, tmp_path / "good", 5, 3), line(2, tmp_path / "short", 50, 50), line(3, tmp_path / "short", 80, 50)]
    )
    assert found[0] == DATA[5:8]
    assert found[2] == DATA[50:100]
    failure = found[3]
    assert isinstance(failure, ReadFailure)
    assert "ends at byte 100" in failure.detail
    assert failure.outcome is Outcome.READ_ERROR


@pytest.mark.parametrize(
    ("break_it", "kind", "why"),
    [
        (lambda shard: shard.unlink(), Kind.MISSING, "no such file"),
        (lambda shard: shard.parent.rename(shard.parent.with_name("away")), Kind.MISSING, "no such file"),
        (lambda shard: (shard.unlink(), shard.mkdir()), Kind.UNREACHABLE, "directory"),
        (lambda shard: (shard.unlink(), shard.symlink_to(shard)), Kind.UNREACHABLE, "symbolic links"),
    ],
)
def test_a_shard_that_can_not_be_read_is_no_bad_data(
    tmp_path: Path, break_it: Callable[[Path], object], kind: Kind, why: str
) -> None:
    shard = tmp_path / "set" / "a.tar"
    write_tar(shard, [("1.jpg", DATA)])
    break_it(shard)
    with pytest.raises(MachineFault, match=why) as raised:
        read_samples([line(0, shard, 512, 100)], outages=Outages(patience=0))
    assert (raised.value.kind, raised.value.place) == (kind, str(shard))


def indexed(folder: Path) -> Index:
    for shard in range(3):
        write_tar(folder / f"{shard}.tar", [(f"{shard}{image}.jpg", DATA[image : image + 900]) for image in range(4)])
    return Index.open(build_index([str(folder / f"{shard}.tar") for shard in range(3)], folder / "index").path)


def replaced(shard: Path, files: list[tuple[str, bytes]]) -> None:
    write_tar(shard, files)
    os.utime(shard, ns=(1, 1))


def test_a_shard_that_changed_is_no_bad_data(tmp_path: Path) -> None:
    index = indexed(tmp_path)
    lines, shard = index.lines(range(index.samples)), tmp_path / "1.tar"
    content = read_samples(lines)
    os.utime(shard, ns=(1, 1))
    assert read_samples(lines) == content, "a copy with another time has the same content"
    for files in ([("x.jpg", b"short")], [("x.jpg", DATA * 4)]):
        replaced(shard, files)
        with pytest.raises(MachineFault, match="has changed since it was indexed") as raised:
            read_samples(lines, outages=Outages(patience=0, index=index))
        assert raised.value.place == str(shard)
    shard.write_bytes(b"")
    os.utime(shard, ns=(1, 1))
    with pytest.raises(MachineFault, match="has changed"):
        read_samples(lines, outages=Outages(patience=0, index=index))


def test_an_outage_costs_nothing_but_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = indexed(tmp_path / "set")
    lines, told = index.lines(range(index.samples)), list[Wait | None]()
    content = read_samples(lines)
    (tmp_path / "set" / "1.tar").rename(tmp_path / "away.tar")
    monkeypatch.setattr(failures, "FIRST_PAUSE", 0.01)
    counts = ReadCounts()

    def tell(wait: Wait | None) -> None:
        told.append(wait)
        if len(told) == 4:
            (tmp_path / "away.tar").rename(tmp_path / "set" / "1.tar")

    assert read_samples(lines, counts=counts, outages=Outages(tell=tell, index=index)) == content
    assert [str(wait).split(",")[0] if wait else None for wait in told] == [
        *[f"waiting for {tmp_path}/set/1.tar: no such file or directory"] * 4,
        None,
    ]
    assert counts.requests == 3, "what was read is not read again"


def test_a_shard_that_is_gone_for_good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outages_module, "DEFINITE", 0.05)
    monkeypatch.setattr(failures, "FIRST_PAUSE", 0.01)
    index = indexed(tmp_path)
    lines = index.lines(range(index.samples))
    content = read_samples(lines)
    (tmp_path / "1.tar").unlink()
    alone = [line for line in lines if line.shard.endswith("1.tar")]
    for wanted in (lines, alone):  # other shards answer, also when only the missing one is read
        with pytest.raises(MachineFault, match=r"1\.tar can't be used \(no such file"):
            read_samples(wanted, outages=Outages(index=index))
        policy = Outages(missing="replace", index=index)
        found = read_samples(wanted, outages=policy)
        assert list(policy.gone) == [str(tmp_path / "1.tar")]
        for one in wanted:
            data = found[one.number]
            if one in alone:
                assert isinstance(data, ReadFailure)
                assert data.outcome is Outcome.READ_ERROR
                assert "1.tar is gone: no such file" in data.detail
            else:
                assert data == content[one.number]
        monkeypatch.setattr(failures, "FIRST_PAUSE", 1e9)
        assert read_samples(wanted, outages=policy) == found, "it waits once"
        monkeypatch.setattr(failures, "FIRST_PAUSE", 0.01)


def test_all_shards_away_is_an_outage_and_never_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outages_module, "DEFINITE", 0.0)
    monkeypatch.setattr(failures, "FIRST_PAUSE", 0.01)
    index = indexed(tmp_path)
    for shard in range(3):
        (tmp_path / f"{shard}.tar").unlink()
    told: list[Wait | None] = []
    with pytest.raises(MachineFault):
        read_samples(index.lines(range(4)), outages=Outages(0.2, "replace", told.append, index))
    assert len(told) > 3


def test_a_denied_shard_is_never_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = indexed(tmp_path)

    def denied(path: object, *_: object) -> int:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", denied)
        with pytest.raises(MachineFault, match="permission denied"):
            read_samples(index.lines(range(4)), outages=Outages(0, "replace", index=index))


def test_a_read_that_hangs_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network file system may answer no call for minutes."""
    index = indexed(tmp_path)
    monkeypatch.setattr(failures, "LONGEST_PAUSE", 0.02)
    told, pread = list[Wait | None](), os.pread

    def slow(descriptor: int, size: int, offset: int) -> bytes:
        while len(told) < 2:
            time.sleep(0.01)
        return pread(descriptor, size, offset)

    monkeypatch.setattr(os, "pread", slow)
    read_samples(index.lines(range(1)), outages=Outages(tell=told.append))
    assert str(told[0]).startswith(f"waiting for {tmp_path}/0.tar: no answer yet")
    assert told[-1] is None


def test_samples_over_the_size_limit_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(DATA)
    found = read_samples([line(0, tmp_path / "x", 0, 1001), line(1, tmp_path / "x", 0, 1000)], max_bytes=1000)
    assert found[1] == DATA[:1000]
    assert isinstance(found[0], ReadFailure)
    assert found[0].outcome is Outcome.TOO_MANY_BYTES
