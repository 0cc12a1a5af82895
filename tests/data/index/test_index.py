from __future__ import annotations

import errno
import gzip
import json
import os
import pickle
import shutil
from pathlib import Path

import pytest

from swav_platform.data.index import lookup, version_writer
from swav_platform.data.index.build import build_index
from swav_platform.data.index.lookup import Index
from swav_platform.data.index.sources import expand
from swav_platform.data.samples import ReadFailure, read_samples
from swav_platform.errors import UsageError, UserError
from tests.makers import write_tar

PNG = b"\x89PNG\r\n\x1a\n" + bytes(20)


def keys(tmp_path: Path, files: list[tuple[str, bytes]]) -> tuple[list[str], dict[str, int]]:
    report = build_index([write_tar(tmp_path / "x.tar", files)], tmp_path / "index")
    return [line.key for line in Index.open(tmp_path / "index").lines(range(report.samples))], report.skipped


def test_samples_keys_and_contents(tmp_path: Path) -> None:
    one = write_tar(tmp_path / "1.tar", [("x/0.jpg", b"first"), ("x/0.json", b"{}"), ("y/0.JPG", b"second")])
    two = write_tar(tmp_path / "2.tar", [("v1.0/a.png", b"third"), ("empty.jpg", b"")])
    report = build_index([one, two], tmp_path / "index")
    assert (report.samples, report.shards, report.skipped) == (4, 2, {})
    index = Index.open(tmp_path / "index")
    assert (index.samples, index.digest) == (4, report.digest)
    lines = index.lines([2, 0, 3, 1, 2])
    assert [(line.number, line.key, line.shard, line.extension) for line in lines] == [
        (2, "v1.0/a", two, "png"),
        (0, "x/0", one, "jpg"),
        (3, "empty", two, "jpg"),
        (1, "y/0", one, "jpg"),
        (2, "v1.0/a", two, "png"),
    ]
    assert read_samples(lines) == {0: b"first", 1: b"second", 2: b"third", 3: b""}


def test_images_that_share_a_key_are_separate_samples(tmp_path: Path) -> None:
    found, _ = keys(tmp_path, [(f"img.{name}", b"x") for name in ("v1.2.jpg", "v1.3.jpg")] + [("a.jpg", b""), ("a.png", b"")])
    assert found == ["img.v1.2", "img.v1.3", "a.jpg", "a.png"]


def test_members_that_are_not_samples_are_counted(tmp_path: Path) -> None:
    found, skipped = keys(
        tmp_path,
        [
            ("._0.jpg", b"x"),
            ("__MACOSX/0.jpg", b"x"),
            ("d/.DS_Store", b"x"),
            ("0.jpg", b"x"),
            ("0.jpg", b"later"),
            ("0.txt", b"x"),
            ("README", b"x"),
            ("failed.json", b"x"),
            ("noextension", PNG),
            ("odd.bin", PNG),
        ],
    )
    assert found == ["0", "noextension", "odd"]
    assert skipped == {"hidden": 3, "duplicate": 1, "no_image": 2}


def test_keys_that_are_not_utf8_are_escaped(tmp_path: Path) -> None:
    found, _ = keys(tmp_path, [("caf\udce9 50%.jpg", b"x"), ("é.jpg", b"x")])
    assert found == ["caf%E9 50%", "é"]


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        (None, [None, None, None]),
        ("folder", ["cat", None, "a/b"]),
        ("cls", ["3", "7", None]),
        ("json:class", ["tabby", None, "9"]),
    ],
)
def test_labels(tmp_path: Path, label: str | None, expected: list[str | None]) -> None:
    tar = write_tar(
        tmp_path / "x.tar",
        [
            ("./cat/1.jpg", b""),
            ("./cat/1.cls", b"3\n"),
            ("2.jpg", b""),
            ("a/b/3.jpg", b""),
            ("2.cls", b"7"),  # not next to its image
            ("./cat/1.json", b'{"class": "tabby"}'),
            ("2.json", b"broken {"),
            ("a/b/3.json", b'{"class": 9}'),
        ],
    )
    build_index([tar], tmp_path / "index", label=label)
    assert [line.label for line in Index.open(tmp_path / "index").lines([0, 1, 2])] == expected


def test_wrong_label_is_refused(tmp_path: Path) -> None:
    for label in ("class", "json:", ""):
        with pytest.raises(UsageError, match="Unknown label source"):
            build_index(["x.tar"], tmp_path, label=label)


def test_the_digest_depends_on_content_and_order_but_not_on_location(tmp_path: Path) -> None:
    tars = [write_tar(tmp_path / "a" / f"{n}.tar", [(f"{n}/1.jpg", b"x" * n)]) for n in (1, 2)]
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    moved = [str(tmp_path / "b" / f"{n}.tar") for n in (1, 2)]
    digest = build_index(tars, tmp_path / "i1").digest
    assert build_index(moved, tmp_path / "i2").digest == digest
    others = [
        build_index(tars[::-1], tmp_path / "i3").digest,
        build_index(tars, tmp_path / "i4", label="folder").digest,
        build_index(tars[:1], tmp_path / "i5").digest,
    ]
    write_tar(tmp_path / "a" / "2.tar", [("2/1.jpg", b"xyz")])
    others.append(build_index(tars, tmp_path / "i1").digest)
    assert len({digest, *others}) == 5


def test_an_unchanged_index_is_reused(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "x.tar", [("1.jpg", b"x"), ("README", b"")])
    first = build_index([tar], tmp_path / "index")
    written = (tmp_path / "index" / "manifest.json").stat().st_mtime_ns
    again = build_index([tar], tmp_path / "index")
    assert (again.digest, again.samples, again.skipped) == (first.digest, 1, {"no_image": 1})
    assert again.bytes_read == 0 < first.bytes_read
    assert (tmp_path / "index" / "manifest.json").stat().st_mtime_ns == written
    write_tar(tmp_path / "x.tar", [("1.jpg", b"x"), ("2.jpg", b"")])
    assert build_index([tar], tmp_path / "index").samples == 2
    next((tmp_path / "index").glob("version-*/part-00000.parquet")).unlink()
    (Index.open(tmp_path / "index").path / "part-00000.parquet").unlink(missing_ok=True)
    assert build_index([tar], tmp_path / "index").bytes_read > 0
    assert build_index([tar], tmp_path / "index", label="folder").bytes_read > 0


def test_many_parts_and_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sample numbers are continuous over shards, row groups and parts."""
    monkeypatch.setattr(version_writer, "_PART", 100)
    monkeypatch.setattr(version_writer, "GROUP", 8)
    monkeypatch.setattr(lookup, "GROUP", 8)
    monkeypatch.setattr(lookup, "_CACHED_GROUPS", 2)
    monkeypatch.setattr(lookup, "_CACHED_FILES", 1)
    counts = [3, 0, 90, 50, 1, 120, 7]
    tars = [write_tar(tmp_path / f"{n}.tar", [(f"{n}-{i}.jpg", b"") for i in range(c)]) for n, c in enumerate(counts)]
    build_index(tars, tmp_path / "index")
    manifest = json.loads((tmp_path / "index" / "manifest.json").read_text())
    assert [part["samples"] for part in manifest["parts"]] == [143, 121, 7]
    assert Index.open(tmp_path / "index").shards.first.tolist() == [0, 3, 3, 93, 143, 144, 264, 271]
    expected = [f"{n}-{i}" for n, c in enumerate(counts) for i in range(c)]
    index = pickle.loads(pickle.dumps(Index.open(tmp_path / "index")))
    numbers = [(i * 97) % 271 for i in range(271)]
    assert [line.key for line in index.lines(numbers)] == [expected[n] for n in numbers]
    for numbers in ([271], [-1]):
        with pytest.raises(IndexError):
            index.lines(numbers)


def test_one_broken_shard_among_many_is_counted(tmp_path: Path) -> None:
    good = write_tar(tmp_path / "good.tar", [("1.jpg", b"x")])
    (tmp_path / "gz.tar").write_bytes(gzip.compress(b"x" * 3000))
    (tmp_path / "empty.tar").write_bytes(b"")
    (tmp_path / "page.tar").write_bytes(b"<html>" + b"x" * 2000)
    report = build_index([str(tmp_path / n) for n in ("gz.tar", "empty.tar", "page.tar")] + [good], tmp_path / "index")
    assert (report.samples, report.shards) == (1, 4)
    assert report.skipped == {"shard_compressed": 1, "shard_empty_file": 1, "shard_not_a_tar": 1}


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (gzip.compress(b"x" * 3000, mtime=0), "x.tar is compressed"),
        (b"", "x.tar is an empty file"),
        (b"hello" * 500, "x.tar is not a tar"),
        (bytes(10240), "x.tar contains no image"),
    ],
)
def test_an_empty_result_says_why_and_keeps_the_current_version(tmp_path: Path, data: bytes, says: str) -> None:
    tar = tmp_path / "x.tar"
    write_tar(tar, [("1.jpg", b"x")])
    digest = build_index([str(tar)], tmp_path / "index").digest
    tar.write_bytes(data)
    with pytest.raises(UserError, match=says):
        build_index([str(tar)], tmp_path / "index")
    assert Index.open(tmp_path / "index").digest == digest
    assert len(os.listdir(tmp_path / "index")) == 2


def test_a_full_disk_keeps_the_current_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tar = write_tar(tmp_path / "x.tar", [("1.jpg", b"x")])
    digest = build_index([tar], tmp_path / "index").digest

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(UserError, match="No space left on device"):
        build_index([tar], tmp_path / "index", label="folder")
    monkeypatch.undo()
    assert Index.open(tmp_path / "index").digest == digest
    assert len(os.listdir(tmp_path / "index")) == 2


def test_a_new_version_reads_changed_shards_and_keeps_the_old_version(tmp_path: Path) -> None:
    tars = [
        write_tar(tmp_path / f"{n}.tar", [(f"{n}-{i}.jpg", b"x" * n) for i in range(5)] + [("README", b"")]) for n in range(4)
    ]
    build_index(tars[:3], tmp_path / "index")
    old = Index.open(tmp_path / "index")
    write_tar(tmp_path / "1.tar", [("new.jpg", b"y")])
    os.utime(tmp_path / "0.tar")  # same content, new modification time: read again, same lines
    report = build_index(tars, tmp_path / "index")
    assert (report.samples, report.shards_read, report.skipped) == (16, 3, {"no_image": 3})
    assert report.bytes_read > 0
    new = Index.open(tmp_path / "index")
    assert new.digest == build_index(tars, tmp_path / "fresh").digest
    numbers = range(new.samples)
    assert new.lines(numbers) == Index.open(tmp_path / "fresh").lines(numbers)
    assert [line.key for line in pickle.loads(pickle.dumps(old)).lines([5])] == ["1-0"]
    assert Index.open(old.path).digest == old.digest != new.digest


def test_examples_of_skipped_members(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "x.tar", [("0.jpg", b"x"), *[(f"note{n}.txt", b"") for n in range(9)], ("._1.jpg", b"")])
    (tmp_path / "page.tar").write_bytes(b"<html>" + b"x" * 2000)
    report = build_index([tar, str(tmp_path / "page.tar")], tmp_path / "index")
    assert report.skipped == {"hidden": 1, "no_image": 9, "shard_not_a_tar": 1}
    assert report.examples["no_image"] == [f"note{n}" for n in range(5)]
    assert report.examples["hidden"] == ["._1.jpg"]
    assert "page.tar is a web page" in report.examples["shard_not_a_tar"][0]


def test_other_errors_name_the_path(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "x.tar", [("1.jpg", b"x")])
    with pytest.raises(UserError, match=r"no index in .*nowhere"):
        Index.open(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"gone\.tar can't be read"):
        build_index([str(tmp_path / "gone.tar")], tmp_path / "index")
    with pytest.raises(UserError, match="could not be written"):
        build_index([tar], tmp_path / "x.tar" / "index")
    build_index([tar], tmp_path / "index")
    (tmp_path / "index" / "manifest.json").write_text("{half")
    with pytest.raises(UserError, match="can't be read"):
        Index.open(tmp_path / "index")
    assert build_index([tar], tmp_path / "index").samples == 1


def test_cifar10(shared: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    tars = expand([f"{shared}/data/cifar10/cifar10-train-*.tar"])
    report = build_index(tars, tmp_path / "index", label="folder", progress=lambda done, of: seen.append((done, of)))
    assert (report.samples, report.shards, report.skipped) == (50_000, 20, {})
    assert seen[-1] == (20, 20)
    lines = Index.open(tmp_path / "index").lines([0, 2_500, 49_999])
    assert [Path(line.shard).name[-7:-4] for line in lines] == ["000", "001", "019"]
    assert all(line.label == line.key.split("/")[0] for line in lines)
    assert all(isinstance(data, bytes) and data[:2] == b"\xff\xd8" for data in read_samples(lines).values())
    assert not any(isinstance(data, ReadFailure) for data in read_samples(lines).values())
