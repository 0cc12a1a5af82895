"""Expands data patterns into a list of tars."""

from __future__ import annotations

import fnmatch
import glob
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

from obstore.exceptions import BaseError

from swav_platform.config import Source
from swav_platform.data.index import naming
from swav_platform.data.index.braces import expand_braces, expand_in_command
from swav_platform.data.index.naming import IMAGES
from swav_platform.data.index.shard import Skipped
from swav_platform.data.storage.addresses import hub_address
from swav_platform.data.storage.cache import is_command
from swav_platform.data.storage.errors import explain
from swav_platform.data.storage.objects import SCHEMES, exists, is_remote, listing
from swav_platform.data.walk import identity_of, is_special, walk
from swav_platform.errors import UsageError, UserError

_URL = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]*)://")
_SHARDS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
_PACKED = _SHARDS[1:]
_ENDING = re.compile(r"(\.tar)?\.\w+$")


@dataclass(frozen=True)
class FoundShards:
    """The shards of some patterns, and what was left out on the way."""

    shards: list[str]
    left_out: Skipped


def expand(patterns: Sequence[str | Source], *, allow_pipe: bool = False) -> list[str]:
    """The shards of `find_shards`."""
    return find_shards(patterns, allow_pipe=allow_pipe).shards


def find_shards(
    patterns: Sequence[str | Source], *, allow_pipe: bool = False, missing: Literal["stop", "skip"] = "stop"
) -> FoundShards:
    """Absolute paths and URLs of tars in natural order (shard-2 before shard-10). A shard that is listed several times comes so often.

    A pattern is a path, a folder with tars at any depth, a glob, a pattern with braces, or a list: `@file` or `file.txt` with one
    pattern per line. s3:// and gs:// patterns may be any of these; http(s):// patterns may only have braces.
    `pipe:COMMAND` is the output of a shell command and needs `allow_pipe`.
    missing: what happens to names, without wildcards, that do not exist.
    Raises UsageError if a pattern matches nothing and UserError if a storage does not answer.
    """
    if isinstance(patterns, str):
        patterns = [patterns]
    if not patterns:
        raise UsageError("No data was given: pass a folder of tars, a tar, or a pattern such as 'shards-{000..019}.tar'.")
    texts = [pattern if isinstance(pattern, str) else pattern.pattern for pattern in patterns]
    search = _Search(allow_pipe, missing)
    found = [path for text in texts for path in search.expand(text, ())]
    readable = [path for path in found if search.nameable(path)]
    if not readable:
        raise UsageError(f"None of the shards of {', '.join(texts)} can be used: {search.left_out.told()}.")
    return FoundShards(sorted(readable, key=_natural), search.left_out)


class _Search:
    """Expands patterns and notes what it leaves out."""

    def __init__(self, allow_pipe: bool, missing: Literal["stop", "skip"]) -> None:
        self._allow_pipe, self._missing, self.left_out = allow_pipe, missing, Skipped()

    def expand(self, pattern: str, lists: tuple[str, ...]) -> list[str]:
        if not pattern.strip():
            raise UsageError(
                "A data pattern is empty: pass a folder of tars, a tar, or a pattern such as 'shards-{000..019}.tar'."
            )
        if is_command(pattern):
            return self._command(pattern, lists)
        if pattern.startswith("hf://"):
            pattern = hub_address(pattern)
        if "::" in pattern:
            raise UsageError(
                f"'{pattern}' can't be used: `::` lists are not supported. Pass several patterns, or a file with one per line."
            )
        if is_remote(pattern):
            return _remote(pattern, self.left_out)
        local = _local(pattern)
        if pattern.startswith("@") or (local.lower().endswith(".txt") and os.path.isfile(local)):
            path = os.path.expanduser(pattern.removeprefix("@")) if pattern.startswith("@") else local
            return self._listed(os.path.abspath(path), lists)
        return self._on_disk(pattern, local, listed=bool(lists))

    def nameable(self, path: str) -> bool:
        """Whether an index can hold the name of a shard."""
        try:
            path.encode()
        except UnicodeEncodeError:
            self._note("name_not_utf8", os.fsencode(path))
            return False
        return True

    def _note(self, reason: str, path: bytes) -> None:
        self.left_out.note(reason, naming.text(path))

    def _command(self, pattern: str, lists: tuple[str, ...]) -> list[str]:
        if not self._allow_pipe:
            raise UsageError(refusal(pattern, lists[-1] if lists else None))
        return expand_in_command(pattern)

    def _listed(self, path: str, lists: tuple[str, ...]) -> list[str]:
        """Expands the patterns in a file. Relative ones start at its folder."""
        if path in lists:
            raise UsageError(f"Data list {path} includes itself: remove that line.")
        if is_special(path):
            raise UsageError(f"Data list {path} is a pipe, socket or device: pass a text file with one pattern per line.")
        try:
            lines = Path(path).read_text(encoding="utf-8-sig").split("\n")
        except (OSError, ValueError) as error:
            raise UsageError(f"Data list {path} can't be read ({error}): pass a text file with one pattern per line.") from None
        patterns = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
        if not patterns:
            raise UsageError(f"Data list {path} is empty: write one path, pattern or URL per line.")
        return [found for line in patterns for found in self.expand(_beside(path, line), (*lists, path))]

    def _on_disk(self, pattern: str, local: str, listed: bool) -> list[str]:
        if os.path.lexists(local):
            return self._at(pattern, local)
        found, gone = [], []
        for name in expand_braces(local):
            if os.path.lexists(name):
                found += self._at(pattern, name)
            elif glob.has_magic(name):
                found += self._matches(pattern, name)
            else:
                gone.append(name)
        if gone and self._missing == "stop":
            raise UsageError(_why_missing(gone, pattern, local, listed))
        for name in gone:
            self._note("shard_missing", os.fsencode(os.path.abspath(name)))
        return found

    def _matches(self, pattern: str, name: str) -> list[str]:
        """What a glob matches: files, and the tars in folders."""
        names = self._below(name) if "**" in name else glob.glob(name)
        found = []
        for match in (matches := _without_sidecars(names)):
            if is_special(match):
                self._note("special_file", os.fsencode(match))
            elif len(matches) > 1 and os.path.isdir(match) and not (tars := self._tars(match)):
                self._note("folder_without_tars", os.fsencode(match))
            else:
                found += tars if len(matches) > 1 and os.path.isdir(match) else self._at(pattern, match)
        if not found:
            raise UsageError(
                f"Nothing matches '{pattern}': check the folder and the pattern, and quote it so that the shell does not expand it."
            )
        return found

    def _below(self, name: str) -> list[str]:
        """The files that match a glob with `**`. Python's own search would follow circles of links."""
        name = os.path.abspath(name)
        wanted = _glob_pattern(name)
        tops = [top for top in glob.glob(name[: name.index("**")].rpartition("/")[0] or "/") if os.path.isdir(top)]
        linked: list[bytes] = []

        def matching(paths: Iterable[str]) -> list[str]:
            return [path for path in paths if wanted.fullmatch(path) and not os.path.basename(path).startswith(".")]

        found = matching(self._files(*tops, linked=linked)) if tops else []
        known = {identity_of(path) for path in found}
        middle = name[name.index("**") :].split("/")[1:-1]
        for folder in linked:  # the pattern may have this name of a folder, and not the one under which it was visited
            named = any(fnmatch.fnmatchcase(os.path.basename(os.fsdecode(folder)), part) for part in middle)
            names = matching(map(os.fsdecode, walk(folder, lambda reason, path: None))) if named else []
            others = [path for path in names if identity_of(path) not in known]
            known |= {identity_of(path) for path in others}
            found += others
            if not others:
                self._note("linked_folder", folder)
        return found

    def _at(self, pattern: str, path: str) -> list[str]:
        """The file at a path, or the tars below a folder."""
        path = os.path.abspath(path)
        if is_special(path):
            raise UsageError(f"'{path}' is a pipe, socket or device: pass a tar or a folder of tars.")
        if not os.path.isdir(path):
            return [path]
        found = self._tars(path)
        if not found:
            raise UsageError(_why_no_tars(pattern, path))
        return found

    def _tars(self, folder: str) -> list[str]:
        return _plain(os.path.abspath(folder), self._files(os.path.abspath(folder)))

    def _files(self, folder: str, *more: str, linked: list[bytes] | None = None) -> Iterator[str]:
        """The files below folders, and the links to shards that do not exist.

        linked: takes the second names of folders, which are noted otherwise.
        """
        dangling = []

        def note(reason: str, path: bytes) -> None:
            if reason == "dangling_link" and is_shard(os.fsdecode(path)):
                dangling.append(os.fsdecode(path))
            elif reason == "linked_folder" and linked is not None:
                linked.append(path)
            else:
                self._note(reason, path)

        try:
            for path in walk(os.fsencode(folder), note, more=[os.fsencode(other) for other in more]):
                name = os.fsdecode(path)
                if name.lower().endswith(_SHARDS) and not is_shard(name):
                    self._note("hidden", path)
                yield name
        except OSError as error:
            raise UsageError(f"Folder '{folder}' can't be read ({error.strerror}): check its permissions.") from None
        yield from dangling


def refusal(command: str, listed_by: str | None) -> str:
    """The message for a shell command without permission. listed_by: the file that contains it, if the user did not type it."""
    where = f" in {listed_by}" if listed_by else ""
    return (
        f"'{command}'{where} is a shell command, and every machine that reads this data would run it. To allow it, pass "
        f"--allow-pipe to `swav index`, or set data.allow_pipe=true for a run."
    )


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


def _why_missing(gone: list[str], pattern: str, local: str, listed: bool) -> str:
    source = "" if gone[0] == local else f" (from '{pattern}')"
    more = f" {len(gone) - 1:,} more do not exist." if len(gone) > 1 else ""
    way = (
        ""
        if gone == [local] and not listed
        else " To go on without missing shards, pass --missing skip or set data.missing=skip."
    )
    return f"There is no file or folder '{gone[0]}'{source}: check the spelling.{more}{way}"


def _without_sidecars(names: list[str]) -> list[str]:
    """Drops other files if there are tars: a glob also matches img2dataset's 00000.parquet and 00000_stats.json."""
    tars = [name for name in names if name.lower().endswith(_SHARDS) or os.path.isdir(name)]
    return tars or names


def is_shard(path: str) -> bool:
    """Whether a name is the name of a tar, plain or compressed."""
    return path.lower().endswith(_SHARDS) and not os.path.basename(path).startswith(".")


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
    names = [os.fsdecode(path).lower() for path in islice(walk(os.fsencode(folder), lambda *_: None), 100_000)]
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


def _remote(pattern: str, left_out: Skipped) -> list[str]:
    bucket = pattern.startswith(("s3://", "gs://"))
    if bucket and not pattern.split("/")[2]:
        raise UsageError(f"'{pattern}' has no bucket: write {pattern.split(':')[0]}://BUCKET/PATH.")
    if bucket and (glob.has_magic(pattern) or "{" in pattern) and _exists(pattern):
        return [pattern]
    found = []
    for name in expand_braces(pattern):
        magic = glob.has_magic(name)
        if bucket and magic and name != pattern and _exists(name):
            found.append(name)
        elif bucket and (magic or name.endswith("/") or name.count("/") == 2 or not _has_extension(name)):
            found += _in_bucket(pattern, name, left_out)
        elif not bucket and ("*" in name.partition("?")[0] or name.endswith("/")):
            raise UsageError(
                f"'{pattern}' can't be listed: web servers have no listings. Use braces, such as "
                f"https://host/shard-{{000000..000099}}.tar, or a file with one URL per line."
            )
        else:
            found.append(name)
    return found


def _exists(url: str) -> bool:
    """Whether a name with wildcards is the name of an object."""
    try:
        return exists(url)
    except (OSError, BaseError) as error:
        raise UserError(explain(url, error)) from None


def _has_extension(name: str) -> bool:
    return "." in name.rpartition("/")[2]


def _in_bucket(pattern: str, name: str, left_out: Skipped) -> list[str]:
    """Tars below a prefix, or objects that match a glob. In a glob, * stays within a folder and ** does not."""
    magic = glob.has_magic(name)
    fixed = re.split(r"[*?\[]", name, maxsplit=1)[0].rpartition("/")[0] + "/" if magic else name.rstrip("/") + "/"
    odd: list[str] = []
    try:
        names = [url for url, _ in listing(fixed, odd)]
    except (OSError, BaseError) as error:
        raise UserError(explain(fixed, error)) from None
    for url in odd:
        left_out.note("odd_name", url)
    if not name.rpartition("/")[2].startswith("."):
        hidden = [url for url in names if url.rpartition("/")[2].startswith(".")]
        for url in hidden:
            if url.lower().endswith(_SHARDS):
                left_out.note("hidden", url)
        names = sorted(set(names).difference(hidden)) if hidden else names
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
