"""Where runs are stored: the same behaviour in a folder and in a bucket, also behind a network that fails."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from swav_platform.errors import UsageError
from swav_platform.runs.storage import Stale, Storage, base_name, is_url, join, storage_of
from tests.data.storage.fault_proxy import FaultProxy


@pytest.fixture(
    params=["folder", pytest.param("bucket", marks=pytest.mark.stack), pytest.param("faults", marks=pytest.mark.stack)]
)
def storage(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Storage]:
    if request.param == "folder":
        yield storage_of(tmp_path / "runs" / "mine")
        return
    server = request.getfixturevalue("s3")
    server.store("runs").put("probe", b"makes the bucket")
    url = f"s3://runs/{tmp_path.name}/mine"
    if request.param == "bucket":
        yield storage_of(url)
        return
    with FaultProxy(server.ports["s3"], share=0.3) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        yield storage_of(url)


def test_what_is_put_is_there_until_it_is_deleted(storage: Storage, tmp_path: Path) -> None:
    assert storage.entries() == {}
    assert storage.look("a.json") is None
    with pytest.raises(FileNotFoundError):
        storage.get("a.json")
    storage.put("a.json", b"old")
    storage.put("a.json", b"new")
    (tmp_path / "large").write_bytes(bytes(12_000_000))  # several parts
    storage.put("folder/part-000", tmp_path / "large")
    storage.put("folder/part-001", b"")
    assert storage.get("a.json") == b"new"
    assert storage.get("folder/part-000") == bytes(12_000_000)
    assert storage.entries() == {"a.json": 3, "folder/part-000": 12_000_000, "folder/part-001": 0}
    assert list(storage.entries("folder/")) == ["folder/part-000", "folder/part-001"]
    assert storage.entries("fold/") == {}
    storage.delete(["folder/part-000", "nothing"])
    assert storage.entries() == {"a.json": 3, "folder/part-001": 0}


def test_compare_and_swap(storage: Storage) -> None:
    first = storage.swap("LEASE", b"a", None)
    with pytest.raises(Stale):
        storage.swap("LEASE", b"b", None)
    second = storage.swap("LEASE", b"c", first)
    with pytest.raises(Stale):
        storage.swap("LEASE", b"d", first)
    found = storage.look("LEASE")
    assert found is not None
    assert found.data == b"c"
    assert storage.swap("LEASE", b"e", found.version) != second


def test_of_many_writers_one_swaps(storage: Storage) -> None:
    version = storage.swap("LEASE", b"start", None)
    barrier, won = threading.Barrier(8), []

    def write(number: int) -> None:
        barrier.wait()
        try:
            storage.swap("LEASE", f"writer {number}".encode(), version)
        except Stale:
            return
        won.append(number)

    writers = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [f"writer {number}".encode() for number in won] == [storage.get("LEASE")]


def test_places(tmp_path: Path) -> None:
    assert join(tmp_path, "a", "b") == tmp_path / "a" / "b"
    assert join("s3://runs/", "a", "b") == "s3://runs/a/b"
    assert (base_name(tmp_path / "a"), base_name("s3://runs/a/")) == ("a", "a")
    assert is_url("gs://runs/a")
    assert not is_url(tmp_path)


@pytest.mark.parametrize("url", ["http://host/runs", "s3:///runs", "az://runs/a"])
def test_other_urls_are_refused(url: str) -> None:
    with pytest.raises(UsageError, match=r"s3://BUCKET"):
        storage_of(url)
