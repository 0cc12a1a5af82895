from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from swav_platform.data.index.braces import expand_braces
from swav_platform.data.index.sources import expand, find_shards
from swav_platform.errors import UsageError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("x-0.tar", "x-1.tar", "x-2.tar", "x-10.tar", "deep/er/y.tar", "deep/._y.tar", "pictures/Photo 1.JPG"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "nothing").mkdir()
    return tmp_path


def names(found: list[str], folder: Path) -> list[str]:
    return [str(Path(path).relative_to(folder)) for path in found]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("x-1.tar", ["x-1.tar"]),
        ("x-*.tar", ["x-0.tar", "x-1.tar", "x-2.tar", "x-10.tar"]),
        ("x-{0..2}.tar", ["x-0.tar", "x-1.tar", "x-2.tar"]),
        ("x-{2..0..2}.tar", ["x-0.tar", "x-2.tar"]),
        ("{x-{0,1},deep/er/y}.tar", ["deep/er/y.tar", "x-0.tar", "x-1.tar"]),
        ("x-{0,10}.tar", ["x-0.tar", "x-10.tar"]),
        ("{deep,x-1.tar}", ["deep/er/y.tar", "x-1.tar"]),
        ("**/*.tar", ["deep/er/y.tar", "x-0.tar", "x-1.tar", "x-2.tar", "x-10.tar"]),
        (".", ["deep/er/y.tar", "x-0.tar", "x-1.tar", "x-2.tar", "x-10.tar"]),
    ],
)
def test_patterns(folder: Path, pattern: str, expected: list[str]) -> None:
    assert names(expand([f"{folder}/{pattern}"]), folder) == expected
    assert names(expand([f"file://{folder}/{pattern}"]), folder) == expected


@pytest.mark.parametrize(
    ("pattern", "count"),
    [
        ("{0..99999999}", None),
        ("{0..999}{0..9999}", None),
        ("{a..z}{a..z}{a..z}{a..z}{a..z}", None),
        ("{x,{0..1999999}}", None),
        ("{0..999}-{0..999}", 1_000_000),
        ("{0..9..3}", 4),
        ("{a..c}", 3),
        ("{a{1..3},b{1..2}}", 5),
    ],
)
def test_braces_expand_up_to_a_million_names(pattern: str, count: int | None) -> None:
    if count is None:
        with pytest.raises(UsageError, match="1,000,000 names"):
            expand_braces(pattern)
    else:
        assert len(set(expand_braces(pattern))) == count


@pytest.mark.parametrize("name", ["{}", "a{b}c", "x{1.tar", "x}1{.tar", r"a\{b\}", "{1..}", "a\\b"])
def test_other_braces_stay(name: str) -> None:
    assert expand_braces(name) == [name]


def test_padded_ranges_keep_their_zeros(tmp_path: Path) -> None:
    for number in range(8, 12):
        (tmp_path / f"s-{number:03d}.tar").write_bytes(b"x")
    assert len(expand([f"{tmp_path}/s-{{008..011}}.tar"])) == 4


def test_a_shard_that_is_listed_several_times_comes_so_often(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    (folder / "more.txt").write_text("x-0.tar\nx-1.tar\nx-1.tar\n")
    assert names(expand(["x-1.tar", "./x-1.tar", str(folder / "x-1.tar")]), folder) == ["x-1.tar"] * 3
    assert names(expand(["more.txt"]), folder) == ["x-0.tar", "x-1.tar", "x-1.tar"]
    assert names(expand(["x-1.tar", "x-{0..1}.tar"]), folder) == ["x-0.tar", "x-1.tar", "x-1.tar"]


def test_an_existing_name_with_braces_or_brackets_is_not_expanded(tmp_path: Path) -> None:
    (tmp_path / "a{1,2}[x].tar").write_bytes(b"x")
    assert len(expand([str(tmp_path / "a{1,2}[x].tar")])) == 1


@pytest.mark.parametrize(
    ("pattern", "says"),
    [
        ("gone.tar", "no file or folder '.*gone.tar'"),
        ("x-{0..3}.tar", r"no file or folder '.*x-3.tar' \(from '.*x-{0..3}.tar'"),
        ("z-*.tar", "Nothing matches '.*z-\\*.tar'"),
        ("nothing", "neither tars nor images"),
        ("pictures", "swav pack '.*pictures' --out SHARDS"),
        ("x-{0..99999999}.tar", "smaller range"),
        ("x-1.tar::y.tar", "can't be used"),
    ],
)
def test_errors_name_the_pattern(folder: Path, pattern: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        expand([f"{folder}/{pattern}"])


@pytest.mark.parametrize(
    ("pattern", "says"),
    [
        ("", "is empty"),
        ("pipe:cat x.tar", "shell command"),
        ("hdfs://bucket/x.tar", "hdfs:// is not supported"),
        ("s3://a/x.tar::s3://a/y.tar", "`::` lists"),
        ("s3:///x.tar", "has no bucket"),
        ("https://host/*.tar", "web servers have no listings"),
        ("@no-such-list", "no-such-list can't be read"),
    ],
)
def test_unsupported_patterns(pattern: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        expand([pattern])
    with pytest.raises(UsageError, match="No data"):
        expand([])


def test_remote_names_are_not_checked() -> None:
    assert expand(["https://host/a/x-{08..10}.tar", "s3://bucket/y.tar"]) == [
        "https://host/a/x-08.tar",
        "https://host/a/x-09.tar",
        "https://host/a/x-10.tar",
        "s3://bucket/y.tar",
    ]


def test_lists_contain_patterns_relative_to_them(folder: Path, tmp_path: Path) -> None:
    (folder / "more.list").write_text("x-10.tar\n")
    (folder / "data.txt").write_text(f"# mine\n\nx-{{0..1}}.tar\n{folder}/deep\nhttps://host/z.tar\n@{folder}/more.list\n")
    expected = [f"{folder}/deep/er/y.tar", f"{folder}/x-0.tar", f"{folder}/x-1.tar", f"{folder}/x-10.tar", "https://host/z.tar"]
    for pattern in (f"@{folder}/data.txt", f"{folder}/data.txt"):
        assert sorted(expand([pattern])) == sorted(expected)


@pytest.mark.parametrize(("text", "says"), [("", "is empty"), ("# nothing\n", "is empty"), ("@loop.txt\n", "includes itself")])
def test_invalid_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, says: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loop.txt").write_text(text)
    with pytest.raises(UsageError, match=says):
        expand(["@loop.txt"])


def test_compressed_tars_next_to_plain_ones_are_not_ignored(tmp_path: Path) -> None:
    for name in ("a.tar", "deep/b.tar.gz", "c.tgz"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(UsageError, match=r"1 plain and 2 compressed tars") as raised:
        expand([str(tmp_path)])
    advised = re.findall(r"'([^']*\*[^']*)'", str(raised.value))
    assert names(expand(advised[:1]), tmp_path) == ["a.tar"]
    assert names(expand(advised), tmp_path) == ["a.tar", "c.tgz", "deep/b.tar.gz"]


def test_a_glob_drops_sidecar_files(tmp_path: Path) -> None:
    for name in ("00000.tar", "00000.parquet", "00000_stats.json"):
        (tmp_path / name).write_bytes(b"x")
    assert names(expand([f"{tmp_path}/*"]), tmp_path) == ["00000.tar"]


@pytest.fixture
def linked(tmp_path: Path) -> Path:
    """A folder with links to a folder elsewhere, in a circle and twice; hidden, special and dangling entries."""
    data, other = tmp_path / "data", tmp_path / "other"
    for path in (data / "real/a.tar", data / ".hidden/h.tar", data / "._m.tar", other / "b.tar", other / "deep/c.tar"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    (data / "a-link").symlink_to(other)
    (data / "b-link").symlink_to(other)
    (data / "circle").symlink_to(data)
    (other / "back").symlink_to(data)
    (data / "gone").symlink_to(tmp_path / "nowhere")
    os.mkfifo(data / "fifo.tar")
    return data


@pytest.mark.parametrize("pattern", ["", "/", "/**/*.tar", "/**"])
def test_linked_folders_are_searched_once(linked: Path, pattern: str) -> None:
    found = find_shards([f"{linked}{pattern}"])
    assert names(found.shards, linked) == ["a-link/b.tar", "a-link/deep/c.tar", "real/a.tar"]
    counts = {"hidden_folder": 1, "hidden": 1, "linked_folder": 3, "special_file": 1, "dangling_link": 1}
    assert found.left_out.counts == counts
    assert found.left_out.examples["special_file"] == [str(linked / "fifo.tar")]


def test_a_folder_has_its_own_name_rather_than_that_of_a_link(tmp_path: Path) -> None:
    (tmp_path / "z").mkdir()
    (tmp_path / "z/x.tar").write_bytes(b"x")
    (tmp_path / "a").symlink_to(tmp_path / "z")
    assert names(expand([str(tmp_path)]), tmp_path) == ["z/x.tar"]
    (tmp_path / "only").mkdir()
    (tmp_path / "only/link").symlink_to(tmp_path / "z")
    assert names(expand([str(tmp_path / "only")]), tmp_path) == ["only/link/x.tar"]


@pytest.mark.parametrize(
    ("pattern", "expected", "left_out"),
    [
        ("l*/**/*.tar", ["link/x.tar"], {}),
        ("link/**/*.tar", ["link/x.tar"], {}),
        ("*/**/*.tar", ["y/y.tar", "z/x.tar"], {"linked_folder": 1}),
        ("**/*.tar", ["y/y.tar", "z/x.tar"], {"linked_folder": 1}),
        ("*/*.tar", ["link/x.tar", "y/y.tar", "z/x.tar"], {}),
        ("**/link/*.tar", ["link/x.tar"], {}),
        ("**/li*/**/*.tar", ["link/x.tar"], {}),
        ("**/[lz]*/*.tar", ["z/x.tar"], {"linked_folder": 1}),
    ],
)
def test_a_glob_finds_a_linked_folder_by_the_name_of_the_link(
    tmp_path: Path, pattern: str, expected: list[str], left_out: dict[str, int]
) -> None:
    for name in ("y/y.tar", "z/x.tar"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "link").symlink_to(tmp_path / "z")
    found = find_shards([f"{tmp_path}/{pattern}"])
    assert names(found.shards, tmp_path) == expected
    assert found.left_out.counts == left_out


def test_special_files_in_linked_folders(tmp_path: Path) -> None:
    far, near = tmp_path / "far", tmp_path / "near"
    (far / "deep").mkdir(parents=True)
    near.mkdir()
    os.mkfifo(far / "deep/x.tar")
    (far / "deep/y.tar").write_bytes(b"x")
    for link, to in (
        (near / "l", far),
        (far / "deep/back", near),
        (far / "zero.tar", "/dev/zero"),
        (near / "p.tar", far / "deep/x.tar"),
    ):
        link.symlink_to(to)
    for pattern in ("", "/**/*.tar"):
        found = find_shards([f"{near}{pattern}"])
        assert names(found.shards, near) == ["l/deep/y.tar"]
        assert found.left_out.counts == {"special_file": 3, "linked_folder": 1}


def test_gaps_of_a_range_with_steps(folder: Path) -> None:
    found = find_shards([f"{folder}/x-{{0..12..2}}.tar"], missing="skip")
    assert names(found.shards, folder) == ["x-0.tar", "x-2.tar", "x-10.tar"]
    assert found.left_out.examples == {"shard_missing": [f"{folder}/x-{n}.tar" for n in (4, 6, 8, 12)]}


def test_names_with_line_ends_of_unicode_in_a_list(tmp_path: Path) -> None:
    for name in ("a\u2028b.tar", "b.tar"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "list").write_text("a\u2028b.tar\r\n")
    assert names(expand([f"@{tmp_path}/list"]), tmp_path) == ["a\u2028b.tar"]


def test_special_files_are_never_opened(linked: Path) -> None:
    with pytest.raises(UsageError, match="is a pipe, socket or device"):
        expand([str(linked / "fifo.tar")])
    with pytest.raises(UsageError, match="is a pipe, socket or device"):
        expand([f"@{linked}/fifo.tar"])
    with pytest.raises(UsageError, match="Nothing matches"):
        expand([f"{linked}/f*.tar"])


def test_a_glob_leaves_out_folders_without_tars(folder: Path) -> None:
    found = find_shards([f"{folder}/*"])
    assert len(found.shards) == 5
    assert found.left_out.counts == {"folder_without_tars": 2, "hidden": 1}


def test_names_that_are_not_utf8_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "good.tar").write_bytes(b"x")
    with open(os.fsencode(tmp_path) + b"/b\xe9.tar", "wb") as file:
        file.write(b"x")
    found = find_shards([str(tmp_path)])
    assert names(found.shards, tmp_path) == ["good.tar"]
    assert found.left_out.examples == {"name_not_utf8": [f"{tmp_path}/b%E9.tar"]}
    with pytest.raises(UsageError, match=r"1 name_not_utf8 \(.*b%E9"):
        find_shards([os.fsdecode(os.fsencode(tmp_path) + b"/b\xe9.tar")])


def test_missing_names_stop_or_are_left_out(folder: Path) -> None:
    for pattern in (f"{folder}/x-{{0..4}}.tar", f"@{folder}/list"):
        (folder / "list").write_text("x-0.tar\nx-1.tar\nx-2.tar\nx-3.tar\nx-4.tar\n")
        with pytest.raises(UsageError, match=r"x-3\.tar'.*missing=skip"):
            expand([pattern])
        found = find_shards([pattern], missing="skip")
        assert names(found.shards, folder) == ["x-0.tar", "x-1.tar", "x-2.tar"]
        assert found.left_out.counts == {"shard_missing": 2}
    with pytest.raises(UsageError, match="None of the shards"):
        find_shards([f"{folder}/y-{{0..4}}.tar"], missing="skip")


@pytest.mark.parametrize(
    ("command", "expanded"),
    [
        (
            "curl -s https://h/x-{08..10}.tar",
            ["curl -s https://h/x-08.tar", "curl -s https://h/x-09.tar", "curl -s https://h/x-10.tar"],
        ),
        ("cat {a,b}-{0..1}.tar", ["cat a-0.tar", "cat a-1.tar", "cat b-0.tar", "cat b-1.tar"]),
        ("awk '{print $1,$2}' x", ["awk '{print $1,$2}' x"]),
        ("cat ${A,,}.tar {} {x} \\{a,b}", ["cat ${A,,}.tar {} {x} \\{a,b}"]),
        ("{ cat a.tar; cat b.tar; }", ["{ cat a.tar; cat b.tar; }"]),
    ],
)
def test_braces_of_commands(command: str, expanded: list[str]) -> None:
    assert expand([f"pipe:{command}"], allow_pipe=True) == [f"pipe:{each}" for each in expanded]


def test_addresses_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    base = "https://huggingface.co/datasets/o/n/resolve"
    assert expand(["hf://datasets/o/n/train/x-{0..1}.tar"]) == [f"{base}/main/train/x-0.tar", f"{base}/main/train/x-1.tar"]
    assert expand(["hf://datasets/o/n@v1/x.tar"]) == [f"{base}/v1/x.tar"]
    with pytest.raises(UsageError, match="hf://datasets/OWNER"):
        expand(["hf://datasets/o"])
