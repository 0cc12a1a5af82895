"""Expands data patterns into a list of tars."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path

from obstore.exceptions import BaseError

from swav_platform.config import Source
from swav_platform.data.index.braces import expand_braces
from swav_platform.data.index.naming import IMAGES
from swav_platform.data.storage.cache import is_command
from swav_platform.data.storage.errors import explain
from swav_platform.data.storage.objects import SCHEMES, is_remote, listing
from swav_platform.errors import UsageError, UserError

_URL = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]*)://")
_SHARDS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
_PACKED = _SHARDS[1:]
_ENDING = re.compile(r"(\.tar)?\.\w+$")


def expand(patterns: Sequence[str | Source], *, allow_pipe: bool = False) -> list[str]:
    """Absolute paths and URLs of tars, without duplicates, in natural order (shard-2 before shard-10).

    A pattern is a path, a folder with tars at any depth, a glob, a pattern with braces, or a list: `@file` or `file.txt` with one
    pattern per line. s3:// and gs:// patterns may be any of these; http(s):// patterns may only have braces.
    `pipe:COMMAND` is the output of a shell command and needs `allow_pipe`.
    Raises UsageError if a pattern matches nothing and UserError if a storage does not answer.
    """
    if isinstance(patterns, str):
        patterns = [patterns]
    if not patterns:
        raise UsageError("No data was given: pass a folder of tars, a tar, or a pattern such as 'shards-{000..019}.tar'.")
    texts = [pattern if isinstance(pattern, str) else pattern.pattern for pattern in patterns]
    found = {path for text in texts for path in _expand(text, allow_pipe, ())}
    return sorted(found, key=_natural)


def _expand(pattern: str, allow_pipe: bool, lists: tuple[str, ...]) -> list[str]:
    if not pattern.strip():
        raise UsageError("A data pattern is empty: pass a folder of tars, a tar, or a pattern such as 'shards-{000..019}.tar'.")
    if is_command(pattern):
        return _command(pattern, allow_pipe, lists)
    if "::" in pattern:
        raise UsageError(
            f"'{pattern}' can't be used: `::` lists are not supported. Pass several patterns, or a file with one per line."
        )
    if is_remote(pattern):
        return _remote(pattern)
    local = _local(pattern)
    if pattern.startswith("@") or (local.lower().endswith(".txt") and os.path.isfile(local)):
        return _listed(os.path.expanduser(pattern.removeprefix("@")) if pattern.startswith("@") else local, allow_pipe, lists)
    return _on_disk(pattern, local)


def _command(pattern: str, allow_pipe: bool, lists: tuple[str, ...]) -> list[str]:
    if not allow_pipe:
        raise UsageError(refusal(pattern, lists[-1] if lists else None))
    return [pattern]


def refusal(command: str, listed_by: str | None) -> str:
    """The message for a shell command without permission. listed_by: the file that contains it, if the user did not type it."""
    where = f" in {listed_by}" if listed_by else ""
    return (
        f"'{command}'{where} is a shell command, and every machine that reads this data would run it. To allow it, pass "
        f"--allow-pipe to `swav index`, or set data.allow_pipe=true for a run."
    )


def _listed(path: str, allow_pipe: bool, lists: tuple[str, ...]) -> list[str]:
    """Expands the patterns in a file. Relative ones start at its folder."""
    path = os.path.abspath(path)
    if path in lists:
        raise UsageError(f"Data list {path} includes itself: remove that line.")
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise UsageError(f"Data list {path} can't be read ({error}): pass a text file with one pattern per line.") from None
    patterns = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not patterns:
        raise UsageError(f"Data list {path} is empty: write one path, pattern or URL per line.")
    return [found for line in patterns for found in _expand(_beside(path, line), allow_pipe, (*lists, path))]


def _beside(path: str, line: str) -> str:
    if _URL.match(line) or is_command(line) or line.startswith(("/", "~", "@")) or "::" in line:
        return line
    return os.path.join(os.path.dirname(path), line)


def _local(pattern: str) -> str:
    if pattern.startswith("file://"):
        pattern = pattern.removeprefix("file://")
    elif url := _URL.match(pattern):
        raise UsageError(
            f"'{pattern}' can't be read: {url[1]}:// is not supported. Use a path or one of {', '.join(f'{s}://' for s in SCHEMES)}."
        )
    return os.path.expanduser(pattern)


def _on_disk(pattern: str, local: str) -> list[str]:
    if os.path.exists(local):
        return _at(pattern, local)
    found = []
    for name in expand_braces(local):
        if os.path.exists(name):
            found += _at(pattern, name)
        elif not glob.has_magic(name):
            source = "" if name == local else f" (from '{pattern}')"
            raise UsageError(f"There is no file or folder '{name}'{source}: check the spelling.")
        else:
            matches = _without_sidecars(glob.glob(name, recursive=True))
            if not matches:
                raise UsageError(
                    f"Nothing matches '{pattern}': check the folder and the pattern, and quote it so that the shell does not expand it."
                )
            found += [path for match in matches for path in _at(pattern, match)]
    return found


def _without_sidecars(names: list[str]) -> list[str]:
    """Drops other files if there are tars: a glob also matches img2dataset's 00000.parquet and 00000_stats.json."""
    tars = [name for name in names if name.lower().endswith(_SHARDS) or os.path.isdir(name)]
    return tars or names


def is_shard(path: str) -> bool:
    """Whether a name is the name of a tar, plain or compressed."""
    return path.lower().endswith(_SHARDS) and not os.path.basename(path).startswith(".")


def _at(pattern: str, path: str) -> list[str]:
    """The file at a path, or the tars below a folder."""
    path = os.path.abspath(path)
    if not os.path.isdir(path):
        return [path]
    found = _plain(path, (os.path.join(folder, name) for folder, _, names in os.walk(path) for name in names))
    if not found:
        raise UsageError(_why_no_tars(pattern, path))
    return found


def _plain(folder: str, names: Iterable[str]) -> list[str]:
    """The plain tars below a folder. Raises UsageError if there are compressed ones too, instead of ignoring them."""
    shards = [name for name in names if is_shard(name)]
    plain = [name for name in shards if name.lower().endswith(".tar")]
    packed = [name for name in shards if name.lower().endswith(_PACKED)]
    if plain and packed:
        others = ", ".join(f"'{folder}/**/*{ending}'" for ending in sorted({_ENDING.search(n)[0] for n in packed}))  # type: ignore[index]
        raise UsageError(
            f"'{folder}' contains {len(plain):,} plain and {len(packed):,} compressed tars, such as {packed[0]}. Pass '{folder}/**/*.tar' "
            f"for the plain ones; add {others} for the others, which are fetched and unpacked whole."
        )
    return plain


def _why_no_tars(pattern: str, folder: str) -> str:
    names = [name.lower() for _, _, files in islice(os.walk(folder), 1000) for name in files]
    if any(name.rpartition(".")[2] in IMAGES for name in names):
        return (
            f"Folder '{pattern}' contains images but no tars: run `swav pack '{pattern}' --out SHARDS` and pass SHARDS instead."
        )
    if any(name.endswith(_PACKED) for name in names):
        return (
            f"Folder '{pattern}' contains only compressed tars: unpack them to plain .tar files, or pass '{pattern}/*.tar.gz' to "
            f"fetch and unpack each one whole."
        )
    return f"Folder '{pattern}' contains neither tars nor images: pass another folder."


def _remote(pattern: str) -> list[str]:
    bucket = pattern.startswith(("s3://", "gs://"))
    if bucket and not pattern.split("/")[2]:
        raise UsageError(f"'{pattern}' has no bucket: write {pattern.split(':')[0]}://BUCKET/PATH.")
    found = []
    for name in expand_braces(pattern):
        if bucket and (glob.has_magic(name) or name.endswith("/") or name.count("/") == 2 or not _has_extension(name)):
            found += _in_bucket(pattern, name)
        elif "*" in name or name.endswith("/"):
            raise UsageError(
                f"'{pattern}' can't be listed: web servers have no listings. Use braces, such as "
                f"https://host/shard-{{000000..000099}}.tar, or a file with one URL per line."
            )
        else:
            found.append(name)
    return found


def _has_extension(name: str) -> bool:
    return "." in name.rpartition("/")[2]


def _in_bucket(pattern: str, name: str) -> list[str]:
    """Tars below a prefix, or objects that match a glob. In a glob, * stays within a folder and ** does not."""
    magic = glob.has_magic(name)
    fixed = re.split(r"[*?\[]", name, maxsplit=1)[0].rpartition("/")[0] + "/" if magic else name.rstrip("/") + "/"
    try:
        names = [url for url, _ in listing(fixed)]
    except (OSError, BaseError) as error:
        raise UserError(explain(fixed, error)) from None
    if magic:
        wanted = _glob_pattern(name)
        matches = _without_sidecars([url for url in names if wanted.fullmatch(url)])
    else:
        matches = _plain(name.rstrip("/"), names)
    if not matches:
        what = f"Nothing matches '{pattern}'" if magic else f"There is no tar below '{pattern}'"
        raise UsageError(f"{what} ({len(names):,} objects listed): check the bucket, the folder and the pattern.")
    return matches


_TOKENS = re.compile(r"(\*\*/|\*\*|\*|\?|\[[^\]]+\])")
_MEANING = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}


def _glob_pattern(name: str) -> re.Pattern[str]:
    parts = []
    for token in _TOKENS.split(name):
        is_set = token.startswith("[") and token.endswith("]") and len(token) > 2
        parts.append(_MEANING.get(token) or (token.replace("[!", "[^", 1) if is_set else re.escape(token)))
    return re.compile("".join(parts), re.DOTALL)


def _natural(path: str) -> list[tuple[int, int, str]]:
    """A sort key in which digits count as numbers. The text itself breaks ties such as 1 and 01."""
    parts = re.split(r"(\d+)", path)
    key = [(1, int(part), "") if part.isdecimal() else (0, 0, part) for part in parts]
    return [*key, (0, 0, path)]
