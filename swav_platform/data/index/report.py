"""The report of an index: what it leaves out, and what looks odd in its shards."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import xxhash

from swav_platform.data.index.lookup import Index, IndexLine
from swav_platform.data.index.names import short_names
from swav_platform.data.index.shard import EXAMPLES, SHARD_REASONS, Skipped
from swav_platform.data.samples import read_samples
from swav_platform.data.storage.cache import is_command
from swav_platform.data.storage.objects import is_remote
from swav_platform.data.walk import identity_of

NAMED = 100  # damaged shards that are named
_LOOKED_AT = 2**20  # samples whose sizes are compared
_COMPARED = 512  # samples whose bytes are read
_LONGEST = 4 * 2**20  # bytes of a sample that is read
_FIRST = 8  # samples of one size that are read before the others of that size

_TEXTS = {
    "hidden_folder": "Hidden folders, left out",
    "linked_folder": "Links to folders that are read under another name, left out",
    "folder_without_tars": "Folders without tars, left out",
    "special_file": "Pipes, sockets and devices, left out",
    "hidden": "Hidden files, left out",
    "dangling_link": "Links that lead nowhere, left out",
    "unreadable": "Files and folders that can't be read, left out",
    "name_not_utf8": "Files whose names are not UTF-8, left out; rename them",
    "odd_name": "Objects whose names can't be addressed (empty segment, dots, control characters), left out",
    "shard_missing": "Shards that do not exist, left out",
    "shard_damaged": "Damaged shards",
    "shard_twice": "Shards listed several times, which count each time",
    "shard_two_names": "Files listed under several names, which count under each",
    "nested_tar": "Tars inside tars, not read",
    "several_images": "Keys with several images, each of which is a sample (--members or data.members chooses)",
    "not_chosen": "Images that --members or data.members does not choose",
    "without_label": "Samples without a label",
    "equal_samples": "Samples with the same bytes as others",
}

_DAMAGE = {"damaged": "damaged", "truncated": "truncated"}


@dataclass(frozen=True)
class Finding:
    """One line of the report. names: the first ones."""

    kind: str
    count: int
    names: list[str]

    def text(self) -> str:
        more = ", ..." if len(self.names) < self.count and self.kind not in ("several_images", "equal_samples") else ""
        text = f"{_TEXTS[self.kind]}: {self.count:,}" + (f" ({', '.join(self.names)}{more})" if self.names else "")
        return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)  # names may hold what controls a terminal


def findings(index: Index, left_out: Skipped, *, compare: bool = True) -> list[Finding]:
    """The report of a version of an index. left_out: by the search for shards. compare: read some samples to find copies."""
    found = [Finding(kind, count, left_out.examples.get(kind, [])) for kind, count in left_out.counts.items()]
    found += [_damaged(index), *_listed_several_times(index), *_members(index), _labels(index)]
    found += [_equal(index)] if compare else []
    return [finding for finding in found if finding.count]


def _damaged(index: Index) -> Finding:
    names = []
    for name, skipped in index.shards.with_skipped():
        why = [text for reason, text in SHARD_REASONS.items() if reason in skipped.counts]
        why += [f"{text} ({skipped.counts[reason]:,})" for reason, text in _DAMAGE.items() if reason in skipped.counts]
        if why:
            names.append(f"{name} {', '.join(why)}")
    return Finding("shard_damaged", len(names), names[:NAMED])


def _listed_several_times(index: Index) -> Iterable[Finding]:
    urls, names = index.shards.urls(), index.shards.names
    times = Counter(urls)
    name_of = dict(zip(urls, names, strict=True))
    twice = [f"{name_of[url]} ({count} times)" for url, count in times.items() if count > 1]
    yield Finding("shard_twice", len(twice), twice[:EXAMPLES])
    files: dict[tuple[int, int], list[str]] = defaultdict(list)
    for url in times:
        if not (is_remote(url) or is_command(url)) and (identity := identity_of(url)) is not None:
            files[identity].append(url)
    same = [" = ".join(short_names(linked)) for linked in files.values() if len(linked) > 1]
    yield Finding("shard_two_names", len(same), same[:EXAMPLES])


def _members(index: Index) -> Iterable[Finding]:
    skipped = index.shards.skipped()
    for kind in ("nested_tar", "not_chosen"):
        yield Finding(kind, skipped.counts.get(kind, 0), skipped.examples.get(kind, []))
    several = sorted(skipped.several.items(), key=lambda item: -item[1])
    yield Finding(
        "several_images", sum(skipped.several.values()), [f"{count:,} with {kinds}" for kinds, count in several[:EXAMPLES]]
    )


def _labels(index: Index) -> Finding:
    if index.label is None:
        return Finding("without_label", 0, [])
    without = index.samples - index.labelled()
    first = index.lines(range(min(index.samples, 1000))) if without else []
    return Finding("without_label", without, [line.key for line in first if line.label is None][:EXAMPLES])


def _equal(index: Index) -> Finding:
    """Samples of equal size and bytes, among the sizes that are most frequent. Remote shards are not read for this."""
    sizes = index.column("size", _LOOKED_AT)
    values, place, counts = np.unique(sizes, return_inverse=True, return_counts=True)
    common = np.flatnonzero((counts > 1) & (values > 0) & (values <= _LONGEST))
    common = common[np.argsort(-counts[common], kind="stable")][: _COMPARED // 2]
    order = np.argsort(place, kind="stable")
    starts = np.concatenate([[0], np.cumsum(counts)])
    equal, names, budget = 0, list[str](), _COMPARED
    for size in common.tolist():
        numbers = order[starts[size] : starts[size + 1]]
        if budget <= 0:
            break
        copies = _copies(index, numbers[:_FIRST])
        budget -= min(_FIRST, len(numbers))
        if copies and len(numbers) > _FIRST:
            copies = _copies(index, numbers[:budget])
            budget -= min(budget, len(numbers))
        equal += sum(map(len, copies))
        names += [" = ".join(f"{line.name}/{line.key}" for line in group[:2]) for group in copies]
    return Finding("equal_samples", equal, names[:EXAMPLES])


def _copies(index: Index, numbers: Sequence[int] | np.ndarray) -> list[list[IndexLine]]:
    """The groups of these samples with equal bytes. A shard that is listed twice is not a copy of itself."""
    places = {(line.shard, line.offset): line for line in index.lines(numbers) if not (line.whole or is_remote(line.shard))}
    contents = read_samples(list(places.values()))
    groups: dict[bytes, list[IndexLine]] = defaultdict(list)
    for line in places.values():
        if isinstance(data := contents[line.number], bytes):
            groups[xxhash.xxh3_128_digest(data)].append(line)
    return [group for group in groups.values() if len(group) > 1]
