"""Shards that were written anew, copied or touched after they were indexed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from swav_platform.data.freshness import changed_shards
from swav_platform.data.index.build import build_index
from swav_platform.data.index.lookup import Index
from swav_platform.data.index.verify import verify
from swav_platform.data.outages import Outages
from swav_platform.data.samples import read_samples
from swav_platform.failures import Kind, MachineFault
from tests.makers import Files

OLD, OTHER = [(f"{n}.jpg", bytes([n]) * 900) for n in range(9)], [(f"{n}.jpg", bytes([n + 100]) * 900) for n in range(9)]


def read(index: Index) -> dict[int, object]:
    return dict(read_samples(index.lines(range(index.samples)), outages=Outages(patience=0)))


@pytest.mark.parametrize("keeps_time", [False, True])
@pytest.mark.parametrize(
    ("files", "fresh"), [(OLD, True), (OTHER, False), (OLD[:5], False), ([("x", b""), *OLD], False), ([*OLD[1:], OLD[0]], False)]
)
def test_a_shard_written_anew(
    make_tar: Callable[[str, Files], str], tmp_path: Path, files: Files, fresh: bool, keeps_time: bool
) -> None:
    tar = make_tar("x.tar", OLD)
    build_index([tar], tmp_path / "index")
    index, status = Index.open(tmp_path / "index"), os.stat(tar)
    content = read(index)
    make_tar("x.tar", files)
    os.utime(tar, ns=(1, status.st_mtime_ns if keeps_time else 1))
    same_size = os.stat(tar).st_size == status.st_size
    if fresh or (keeps_time and same_size):  # nobody can see that without reading all bytes
        assert changed_shards(index) == []
        assert not fresh or read(index) == content
    else:
        assert changed_shards(index) == ["x.tar"]
        with pytest.raises(MachineFault, match="index it again") as raised:
            read(index)
        assert raised.value.kind is Kind.CHANGED
    assert verify(index).ok == fresh  # reads the hash, whatever the time says
    build_index([tar], tmp_path / "index")
    assert changed_shards(Index.open(tmp_path / "index")) == []


def test_a_compressed_shard_written_anew(tmp_path: Path, make_tar: Callable[[str, Files], str]) -> None:
    import gzip

    tar = tmp_path / "x.tar.gz"
    tar.write_bytes(gzip.compress(Path(make_tar("x.tar", OLD)).read_bytes()))
    build_index([str(tar)], tmp_path / "index")
    index = Index.open(tmp_path / "index")
    content = read(index)
    tar.write_bytes(gzip.compress(Path(make_tar("x.tar", OTHER)).read_bytes()))
    os.utime(tar, ns=(1, 1))
    assert read(index) == content  # from the cache, which has what was indexed
    for copy in (tmp_path / "_cache").glob("*.tar"):
        copy.unlink()
    with pytest.raises(MachineFault, match="has changed"):
        read(index)


def test_an_index_without_hashes_is_read(tmp_path: Path, make_tar: Callable[[str, Files], str]) -> None:
    tar = make_tar("x.tar", OLD)
    build_index([tar], tmp_path / "index")
    path = Index.open(tmp_path / "index").path / "_shards.parquet"
    pq.write_table(pq.read_table(path).drop_columns(["probe"]), path)
    index = Index.open(tmp_path / "index")
    os.utime(tar, ns=(1, 1))
    assert changed_shards(index) == []
    assert len(read(index)) == 9
    make_tar("x.tar", OLD[:1])
    assert changed_shards(index) == ([] if os.stat(tar).st_size == index.shards.size(0) else ["x.tar"])
