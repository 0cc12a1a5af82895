from __future__ import annotations

import gc
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from swav_platform.data.index.build import build_index
from swav_platform.data.index.lookup import Index
from swav_platform.data.index.sources import expand
from swav_platform.data.pack import pack
from swav_platform.data.samples import read_samples
from swav_platform.errors import UsageError, UserError

FILES: dict[bytes, bytes] = {
    b"a.jpg": b"1",
    b"a.png": b"2",
    b"A photo.of.me.JPG": b"3",
    "Grüße/día 1.jpeg".encode(): b"4",
    b"latin/caf\xe9.jpg": b"5",
    b"v1.0/img.v1.2.jpg": b"6",
    b"v1.0/img.v1.3.jpg": b"7",
    b"noextension": b"\x89PNG\r\n\x1a\n8",
    b"photo.2019": b"\xff\xd8\xff9",
    b"empty.gif": b"",
    b"broken.webp": b"not an image",
    b"100%2Ejpg.jpg": b"10",
    b"100.jpg.jpg": b"11",
    b"x" * 250 + b".jpg": b"12",
}
OTHERS: dict[bytes, bytes] = {b".DS_Store": b"", b"._a.jpg": b"", b"notes.txt": b"x", b"README": b"x", b".thumbnails/a.jpg": b"x"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = os.fsencode(tmp_path / "photos")
    for name, content in {**FILES, **OTHERS}.items():
        path = os.path.join(root, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(content)
    return tmp_path / "photos"


def packed(out: Path) -> dict[str, bytes]:
    report = build_index(expand([str(out)]), out.with_name("index"))
    lines = Index.open(out.with_name("index")).lines(range(report.samples))
    contents = read_samples(lines)
    assert report.skipped == {}
    assert len({line.key for line in lines}) == len(lines)
    return {line.key: data for line in lines if isinstance(data := contents[line.number], bytes)}


def test_all_names_appear_in_the_index(folder: Path, tmp_path: Path) -> None:
    report = pack(folder, tmp_path / "out")
    assert (report.files, report.samples, report.shards) == (len(FILES) + 4, len(FILES), 1)
    assert report.skipped == {"hidden": 2, "not_an_image": 2, "hidden_folder": 1}
    found = packed(tmp_path / "out")
    assert sorted(found.values()) == sorted(FILES.values())
    assert found["A photo%2Eof%2Eme"] == b"3"
    assert found["Grüße/día 1"] == b"4"
    assert found["latin/caf%E9"] == b"5"
    assert found["v1.0/img%2Ev1%2E2"] == b"6"
    assert found["photo%2E2019"] == b"\xff\xd8\xff9"
    assert {found["a"], found["a~2"]} == {b"1", b"2"}


def test_the_same_files_give_the_same_tars(folder: Path, tmp_path: Path) -> None:
    for out in ("one", "two"):
        pack(folder, tmp_path / out, samples_per_shard=4)
        for path in folder.rglob("*"):
            os.utime(path, (1, 1))
    ones, twos = expand([str(tmp_path / "one")]), expand([str(tmp_path / "two")])
    assert len(ones) == 4
    assert [Path(path).read_bytes() for path in ones] == [Path(path).read_bytes() for path in twos]


def test_shards_are_limited_by_samples_and_bytes(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for number, size in enumerate([10, 10, 10, 500, 10, 10]):
        (folder / f"{number}.jpg").write_bytes(bytes(size))
    seen: list[tuple[int, int]] = []
    assert (
        pack(folder, tmp_path / "out", samples_per_shard=2, bytes_per_shard=100, progress=lambda *p: seen.append(p)).shards == 4
    )
    assert seen == [(n, 6) for n in range(1, 7)]
    with tarfile.open(tmp_path / "out" / "shard-000000.tar") as tar:
        assert [(m.name, m.mtime, m.uname) for m in tar] == [("0.jpg", 0, ""), ("1.jpg", 0, "")]


def test_packing_again_replaces_only_its_own_tars(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert pack(folder, out, samples_per_shard=2).shards == 7
    assert pack(folder, out).shards == 1
    assert expand([str(out)]) == [str(out / "shard-000000.tar")]
    (out / "mine.tar").write_bytes(b"x")
    with pytest.raises(UserError, match=r"other tars, for example mine\.tar"):
        pack(folder, out)
    assert (out / "mine.tar").exists()


def test_shards_of_another_folder_are_not_replaced(folder: Path, tmp_path: Path) -> None:
    out, other = tmp_path / "out", tmp_path / "other"
    pack(folder, out)
    before = (out / "shard-000000.tar").read_bytes()
    other.mkdir()
    (other / "x.jpg").write_bytes(b"x")
    with pytest.raises(UsageError, match=r"packed from '.*': choose a new folder"):
        pack(other, out)
    assert (out / "shard-000000.tar").read_bytes() == before
    (tmp_path / "link").symlink_to(folder)
    assert pack(tmp_path / "link", out).shards == 1


def test_images_that_no_run_decodes_are_counted(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in ("a.heic", "b.HEIC", "c.tga", "d.jpg"):
        (tmp_path / "in" / name).write_bytes(b"x")
    report = pack(tmp_path / "in", tmp_path / "out")
    assert (report.samples, report.undecoded) == (4, {"heic": 2, "tga": 1})


def test_links_are_followed_but_cycles_end(tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "in", tmp_path / "elsewhere"
    folder.mkdir()
    elsewhere.mkdir()
    (elsewhere / "far.jpg").write_bytes(b"far")
    (folder / "near.jpg").write_bytes(b"near")
    (folder / "cycle").symlink_to(folder)
    (folder / "there").symlink_to(elsewhere)
    (folder / "to a file.jpg").symlink_to(elsewhere / "far.jpg")
    (folder / "to nothing.jpg").symlink_to(tmp_path / "gone")
    os.mkfifo(folder / "pipe.jpg")
    report = pack(folder, folder / "out")  # inside the packed folder
    assert report.skipped == {"linked_folder": 1, "unreadable": 1, "special_file": 1}
    pack(folder, folder / "out")
    assert sorted(packed(folder / "out")) == ["near", "there/far", "to a file"]


def test_wrong_folders(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"Folder '.*gone' does not exist"):
        pack(tmp_path / "gone", tmp_path / "out")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "x.txt").write_bytes(b"")
    with pytest.raises(UsageError, match="contains no image"):
        pack(tmp_path / "in", tmp_path / "out")
    with pytest.raises(UsageError, match=r"x\.txt' is a file: pass a folder of images"):
        pack(tmp_path / "in" / "x.txt", tmp_path / "out")
    with pytest.raises(UsageError, match=r"x\.txt' is a file: pass a folder for the shards"):
        pack(tmp_path / "in", tmp_path / "in" / "x.txt")
    (tmp_path / "in" / "x.jpg").write_bytes(b"")
    with pytest.raises(UserError, match=r"can't be written to|could not be written"):
        pack(tmp_path / "in", tmp_path / "in" / "x.txt" / "out")


def test_odd_images(shared: Path, tmp_path: Path) -> None:
    """Every image in a folder of unusual files is packed, byte for byte."""
    source = shared / "data" / "odd-images"
    report = pack(source, tmp_path / "out")
    assert report.files == len(os.listdir(source))
    assert report.samples > 600
    contents = {path.read_bytes() for path in source.iterdir()}
    found = packed(tmp_path / "out")
    assert len(found) == report.samples
    assert set(found.values()) <= contents


def test_pillow_and_webdataset_are_not_needed_to_read() -> None:
    """Readers must not pay for the imports of writers."""
    import subprocess
    import sys

    code = (
        "import sys; from swav_platform.data import pack, samples; from swav_platform.data.index import build, sources; from swav_platform.data.order import plan; from swav_platform.data.ledger import ledger, sample_log; "
        "print(sorted({'torch', 'ray', 'webdataset', 'PIL'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


@pytest.mark.filterwarnings("ignore")  # webdataset leaves its file open
def test_webdataset_reads_packed_shards(folder: Path, tmp_path: Path) -> None:
    import webdataset

    pack(folder, tmp_path / "out")
    data = webdataset.WebDataset(str(tmp_path / "out" / "shard-000000.tar"), shardshuffle=False)
    keys = [sample["__key__"] for sample in data]
    del data
    gc.collect()  # here, where the warning is ignored
    assert sorted(keys) == sorted(packed(tmp_path / "out"))


def test_folders_that_cannot_be_read_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "photos" / "locked").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "photos" / "a.png")
    refused, scandir = b"locked", os.scandir

    def guarded(path: Any) -> Any:
        if os.fsencode(path).endswith(refused):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    report = pack(tmp_path / "photos", tmp_path / "out")
    assert (report.samples, report.skipped, report.examples["unreadable"]) == (1, {"unreadable": 1}, ["locked/"])
    refused = b"photos"
    with pytest.raises(UserError, match="can't be read"):
        pack(tmp_path / "photos", tmp_path / "out")


def test_an_interrupted_run_leaves_a_shard_under_each_name(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for number in range(4):
        Image.new("RGB", (8, 8)).save(tmp_path / "photos" / f"{number}.png")
    out = tmp_path / "out"
    pack(tmp_path / "photos", out, samples_per_shard=1)

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack(tmp_path / "photos", out, samples_per_shard=2, progress=stop)
    assert len(list(out.glob("*.tar"))) == 4
    pack(tmp_path / "photos", out, samples_per_shard=2)
    assert sorted(path.name for path in out.glob("*.tar")) == ["shard-000000.tar", "shard-000001.tar"]
