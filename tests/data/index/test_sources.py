from __future__ import annotations

import re
from pathlib import Path

import pytest

from swav_platform.data.index.braces import expand_braces
from swav_platform.data.index.sources import expand
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


def test_paths_are_absolute_and_unique(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert names(expand(["x-1.tar", "./x-1.tar", "x-{0..1}.tar", str(folder / "x-1.tar")]), folder) == ["x-0.tar", "x-1.tar"]


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
