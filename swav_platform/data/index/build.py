"""From shards to a version of an index: what is known of unchanged shards is taken over, the others are read.

What an index is and how it is read: `index_reader.py`; how a version is written: `index_writer.py`.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from obstore.exceptions import BaseError

from swav_platform.data.index.balance import Weights
from swav_platform.data.index.exclusions import Exclusions, Line
from swav_platform.data.index.lookup import Index, IndexLine
from swav_platform.data.index.manifest import ShardFile, is_whole, read_manifest, renumbered, version_folder
from swav_platform.data.index.shard import EXAMPLES, ShardSamples, Skipped, check_label, read_shard
from swav_platform.data.index.version_writer import make_current, write_balanced, write_version
from swav_platform.data.storage.cache import is_command
from swav_platform.data.storage.errors import explain
from swav_platform.data.storage.objects import listing
from swav_platform.data.storage.ranges import stat
from swav_platform.errors import UserError

__all__ = ["Index", "IndexLine", "IndexReport", "Mixed", "build_index", "read_in_threads", "shard_files"]

log = logging.getLogger("swav")

THREADS = 16
_LISTED = 50  # shards of one remote folder from which on a listing is asked for instead of each one's size

Request = tuple[str, int, str | None, str]
"""Arguments of `read_shard`: url, number, label, version."""


@dataclass(frozen=True)
class IndexReport:
    """`skipped`: what is no sample, by reason, and `examples` of names; `bytes_read`: of the shards, 0 where nothing had to
    be read; `shards_read`: how many were; `whole`: shards that can't be read by ranges; `unmatched`: how many lines of the
    exclusion list name no sample."""

    samples: int
    shards: int
    digest: str
    skipped: dict[str, int]
    seconds: float
    bytes_read: int
    path: str
    examples: dict[str, list[str]]
    shards_read: int
    whole: int
    unmatched: int


@dataclass(frozen=True)
class Mixed:
    """One of several data sets: its share of the positions, in proportion to the others', and how many shards it has."""

    weight: float
    shards: int


def build_index(
    shards: Sequence[str],
    out: Path,
    *,
    label: str | None = None,
    exclude: Exclusions | None = None,
    mixed: Sequence[Mixed] = (),
    weights: Weights | None = None,
    progress: Callable[[int, int], None] | None = None,
    read: Callable[[list[Request]], Iterator[ShardSamples]] | None = None,
) -> IndexReport:
    """Index tars into the folder `out`; shards that did not change since its current version are not read again.

    label: None, "folder" (the key's directory), "cls" (content of the .cls member) or "json:FIELD".
    exclude: samples to leave out; the index remembers them for its later versions.
    mixed: the data sets whose shards follow each other in `shards`, if there are several with weights.
    weights: how often samples shall stand in an epoch in proportion to each other.
    progress: called with (shards done, shards). read: reads shards, in their order; by default in threads here.
    Raises UserError if a shard is not there, none has a sample, or `out` can't be written.
    """
    check_label(label)
    started = time.monotonic()
    out = Path(out)
    files = shard_files(shards)
    excluded = Exclusions.of_index(out) | (exclude or Exclusions())
    settings = {"label": label, "excluded": len(excluded)}
    sources = [{"weight": m.weight, "shards": m.shards} for m in mixed]
    base = _base(out, label)
    bytes_read = shards_read = 0
    if base is None or not _same(base, files, settings, sources):
        work = _Work(files, label, excluded, base, read or read_in_threads)
        manifest = write_version(files, _reported(work.found(), len(files), progress), out, settings, sources)
        base, bytes_read, shards_read = Index(version_folder(out, manifest), manifest), work.bytes_read, work.read
        if excluded:
            excluded = excluded.with_found(work.named)
            excluded.write(out)
    current = _balanced(out, base, weights)
    skipped = current.shards.skipped()
    if unmatched := excluded.without_sample(exclude or Exclusions()):
        log.warning(_told(unmatched))
    return IndexReport(
        current.samples,
        len(shards),
        current.digest,
        skipped.counts,
        time.monotonic() - started,
        bytes_read,
        str(out),
        skipped.examples,
        shards_read,
        int(current.shards.whole.sum()),
        len(unmatched),
    )


def _told(unmatched: list[str]) -> str:
    few = ", ".join(unmatched[:EXAMPLES]).replace("\t", "<tab>") + (", ..." if len(unmatched) > EXAMPLES else "")
    return (
        f"Lines of the exclusion list that name no sample: {len(unmatched):,} ({few}). A line is a sample's KEY, its name in the tar "
        f"without extension, or SHARD<tab>KEY. They are kept for later versions."
    )


def _balanced(out: Path, base: Index, weights: Weights | None) -> Index:
    """The version that is asked for, made the current one."""
    manifest = read_manifest(out)
    if weights is None:
        if manifest != base.manifest:
            make_current(out, base.manifest)
        return base
    if manifest is None or (manifest.get("weights"), manifest.get("base")) != (weights.digest(), base.manifest["version"]):
        manifest = write_balanced(base, weights, out)
    return Index(version_folder(out, manifest), manifest)


def _base(out: Path, label: str | None) -> Index | None:
    """The current version, without repeats, if it is whole and has labels of the same kind."""
    try:
        manifest = read_manifest(out)
        if manifest is not None and "base" in manifest:
            manifest = read_manifest(out / manifest["base"])
        if manifest is None or manifest["label"] != label:
            return None
        folder = version_folder(out, manifest)
        return Index(folder, manifest) if is_whole(folder, manifest) else None
    except (UserError, OSError, pa.ArrowInvalid, KeyError):
        return None  # it is written anew


def _same(index: Index, files: list[ShardFile], settings: dict[str, Any], sources: list[dict[str, Any]]) -> bool:
    had = [{"weight": s["weight"], "shards": s["shards"]} for s in index.manifest["sources"]]
    return index.manifest["excluded"] == settings["excluded"] and had == sources and index.shards.files() == files


class _Work:
    """Samples of all shards in order, from the current version where a shard is the same in it."""

    def __init__(self, files: list[ShardFile], label: str | None, excluded: Exclusions, current: Index | None, read: Any) -> None:
        self._files, self._excluded, self._current, self._read = files, excluded, current, read
        places = {} if current is None else {file: number for number, file in enumerate(current.shards.files())}
        self._known = {number: places[file] for number, file in enumerate(files) if file in places}
        self._requests = [(f.url, n, label, f.version) for n, f in enumerate(files) if n not in self._known]
        self.bytes_read, self.read = 0, len(self._requests)
        self.named = set[Line]()

    def found(self) -> Iterator[ShardSamples]:
        fresh = self._read(self._requests)
        for number, file in enumerate(self._files):
            samples = self._taken_over(number) if number in self._known else next(fresh)
            self.bytes_read += samples.bytes_read
            samples, named = without(samples, file.url, self._excluded)
            self.named |= named
            yield samples

    def _taken_over(self, number: int) -> ShardSamples:
        assert self._current is not None
        shard = self._current.shards[self._known[number]]
        lines = renumbered(self._current.table(self._known[number]), number - self._known[number])
        return ShardSamples(lines, shard.skipped, 0, shard.whole)


def without(samples: ShardSamples, url: str, excluded: Exclusions) -> tuple[ShardSamples, set[Line]]:
    """The samples of the shard `url` that are not to be left out, and the lines of the list that name one of the others."""
    keys = samples.lines["key"].to_pylist() if excluded else []
    named = excluded.naming(url, keys)
    if not named:
        return samples, named
    gone = {key for _, key in named}
    stays = np.array([key not in gone for key in keys])
    skipped = Skipped()
    skipped.add(samples.skipped)
    for number in np.flatnonzero(~stays).tolist():
        skipped.note("excluded", keys[number])
    return replace(samples, lines=samples.lines.filter(pa.array(stays)), skipped=skipped), named


def _reported(found: Iterable[ShardSamples], total: int, progress: Callable[[int, int], None] | None) -> Iterator[ShardSamples]:
    for number, samples in enumerate(found):
        yield samples
        if progress is not None:
            progress(number + 1, total)


def read_in_threads(requests: list[Request], threads: int = THREADS) -> Iterator[ShardSamples]:
    """In the order of the requests, some of them ahead."""
    waiting: deque[Future[ShardSamples]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for request in requests:
            waiting.append(pool.submit(read_shard, *request))
            if len(waiting) >= 2 * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def shard_files(shards: Sequence[str]) -> list[ShardFile]:
    """Sizes and versions; those of many remote shards from listings. Raises UserError for a shard that is not there."""
    if not shards:
        raise UserError("There are no shards to index: name at least one tar.")
    known = {url: found for folder in _crowded(shards) for url, found in _listed(folder).items()}

    def one(url: str) -> ShardFile:
        if is_command(url):
            return ShardFile(url, 0, "")
        try:
            return ShardFile(url, *(known.get(url) or stat(url)))
        except (OSError, BaseError) as error:
            text = explain(url, error)
            raise UserError(text if "://" in url else f"The shard {text}") from None

    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(one, shards))


def _crowded(shards: Sequence[str]) -> list[str]:
    buckets = sorted(url.rpartition("/")[0] + "/" for url in shards if url.startswith(("s3://", "gs://")))
    return [folder for folder, urls in groupby(buckets) if len(list(urls)) >= _LISTED]


def _listed(folder: str) -> dict[str, tuple[int, str]]:
    try:
        return {url: (found.size, found.version) for url, found in listing(folder)}
    except (OSError, BaseError):
        return {}  # who may read objects may still not list them
