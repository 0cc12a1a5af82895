"""Names of shards. Tars of one base name are frequent in several folders, so a name is the shortest end of a shard's path or URL
that no other shard of the index has: `shard-000000.tar`, or `part-b/shard-000000.tar`."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

EVERYWHERE = "*/"
"""`*/NAME` in a list stands for the shards with this base name in all folders."""


def short_names(urls: Sequence[str]) -> list[str]:
    """The name of each shard. A shard that is listed several times has one name."""
    names = {url: place(url).rpartition("/")[2] for url in dict.fromkeys(urls)}
    shared = _shared(names)
    length = 1
    while shared:
        length += 1
        for url in shared:
            parts = place(url).split("/")
            # Two places are equal only if URLs differ in their queries.
            names[url] = "/".join(parts[-length:]) if length <= len(parts) else url
        shared = [url for url in _shared({url: names[url] for url in shared}) if names[url] != url]
    return [names[url] for url in urls]


def _shared(names: dict[str, str]) -> list[str]:
    taken = Counter(names.values())
    return [url for url, name in names.items() if taken[name] > 1] if len(taken) < len(names) else []


def place(url: str) -> str:
    """A URL without its query, which in signed URLs changes from day to day."""
    return url.partition("?")[0] if url.startswith(("http://", "https://")) else url


def written(shard: str | None) -> str | None:
    """The shard of a list's line in the form in which it is compared; None for all shards."""
    shard = (shard or "").strip().removeprefix("file://")
    if shard.startswith(("./", "../", "~")):
        return os.path.abspath(os.path.expanduser(shard))
    return shard or None


class ShardNames:
    """Finds the shards that a list means by a path, a URL, or the end of one."""

    def __init__(self, urls: Iterable[str]) -> None:
        self._with_base: dict[str, list[str]] = defaultdict(list)
        for url in dict.fromkeys(urls):
            self._with_base[place(url).rpartition("/")[2]].append(url)

    def meant(self, shard: str) -> list[str]:
        """All shards that `shard`, the result of `written`, may mean. More than one: it is ambiguous, unless it is `*/NAME`."""
        wanted = place(shard)
        same_base = self._with_base.get(wanted.rpartition("/")[2], [])
        if shard.startswith(EVERYWHERE):
            return same_base
        found = [url for url in same_base if place(url) == wanted or place(url).endswith(f"/{wanted}")]
        return [shard] if shard in found else found


def is_end_of(short: str, long: str) -> bool:
    """Whether one path is the end of the other, at a slash."""
    short, long = sorted((place(short), place(long)), key=len)
    return short == long or long.endswith(f"/{short}")


def ambiguous_lines(what: str, lines: Mapping[tuple[str | None, str], list[str]]) -> str:
    """The message about lines of a list that may mean several shards."""
    (shard, key), meant = min(lines.items())
    shards = ", ".join(meant[:3]) + (", ..." if len(meant) > 3 else "")
    return (
        f"{len(lines):,} lines of the {what} have no effect, because each may mean several shards; {shard}<tab>{key} may mean "
        f"{shards}. Write so much of the path that one shard has it, or {EVERYWHERE}NAME for the shards of all folders."
    )
