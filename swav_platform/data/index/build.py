"""Builds a version of an index: copies the lines of unchanged shards and reads the other shards.

lookup.py describes the index and reads it; version_writer.py writes a version.
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
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from obstore.exceptions import BaseError

from swav_platform.data.index.balance import Weights
from swav_platform.data.index.exclusions import Excluded, Exclusions, Line, as_text
from swav_platform.data.index.lookup import Index, IndexLine
from swav_platform.data.index.manifest import ShardFile, is_whole, read_manifest, renumbered, version_folder
from swav_platform.data.index.names import ambiguous_lines
from swav_platform.data.index.report import Finding, findings
from swav_platform.data.index.shard import EXAMPLES, ShardSamples, Skipped, check_label, read_shard
from swav_platform.data.index.version_writer import make_current, write_balanced, write_version
from swav_platform.data.storage.cache import is_command
from swav_platform.data.storage.errors import explain, is_missing
from swav_platform.data.storage.objects import listing
from swav_platform.data.storage.ranges import stat
from swav_platform.errors import UserError

__all__ = ["Index", "IndexLine", "IndexReport", "Mixed", "build_index", "read_in_threads", "shard_files"]

log = logging.getLogger("swav")

THREADS = 16
_LISTED = 50  # from this many shards in a remote folder, one listing replaces a request per shard

Request = tuple[str, int, str | None, str, tuple[str, ...]]
"""Arguments of `read_shard`: url, number, label, version, members."""


@dataclass(frozen=True)
class IndexReport:
    """What `build_index` did.

    skipped: members that are not samples, by reason; `examples`: some of their names. bytes_read: from the shards, 0 if all were
    known. shards_read: number of shards read. whole: number of shards that can't be read by ranges. unmatched: number of lines
    of the exclusion list that match no sample. ambiguous: number of its lines that may mean several shards.
    labels: number of samples with a label. report: counts and names of omitted and odd things, by kind.
    """

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
    ambiguous: int
    labels: int
    report: dict[str, dict[str, Any]]

    def lines(self) -> list[str]:
        """The report in words."""
        return [Finding(kind, found["count"], found["names"]).text() for kind, found in self.report.items()]


@dataclass(frozen=True)
class Mixed:
    """One of several data sets: its relative share of the positions, and its number of shards."""

    weight: float
    shards: int


def build_index(
    shards: Sequence[str],
    out: Path,
    *,
    label: str | None = None,
    members: Sequence[str] = (),
    exclude: Exclusions | None = None,
    mixed: Sequence[Mixed] = (),
    missing: Literal["stop", "skip"] = "stop",
    left_out: Skipped | None = None,
    weights: Weights | None = None,
    progress: Callable[[int, int], None] | None = None,
    read: Callable[[list[Request]], Iterator[ShardSamples]] | None = None,
) -> IndexReport:
    """Indexes tars into the folder `out`. Shards that are unchanged since its current version are not read again.

    label: None, "folder" (the key's directory), "cls" (content of the .cls member) or "json:FIELD".
    members: patterns of the extensions of images that are samples, such as "jpg" or "*.png"; all images if empty.
    exclude: samples to leave out; the index keeps the list for later versions.
    missing: whether a shard that does not exist is an error or left out. left_out: by the search for shards, for the report.
    mixed: weighted data sets, whose shards are consecutive in `shards`.
    weights: relative frequency of samples in an epoch.
    progress: called with (shards done, shards). read: reads shards in order; by default in threads of this process.
    Raises UserError if a shard does not exist, no shard has a sample, or `out` can't be written.
    """
    check_label(label)
    started = time.monotonic()
    out = Path(out)
    files, gone = shard_files(shards, missing)
    mixed = _without_missing(mixed, shards, set(gone)) if gone else mixed
    shards = [file.url for file in files]
    excluded = Exclusions.of_index(out) | (exclude or Exclusions())
    settings: dict[str, Any] = {"label": label, "excluded": len(excluded)} | ({"members": list(members)} if members else {})
    sources = [{"weight": m.weight, "shards": m.shards} for m in mixed]
    base = _base(out, label, tuple(members))
    bytes_read = shards_read = 0
    if base is None or not _is_current(base, files, settings, sources):
        work = _Work(files, label, tuple(members), excluded.on(f.url for f in files), base, read or read_in_threads)
        manifest = write_version(files, _reported(work.found(), len(files), progress), out, settings, sources)
        base, bytes_read, shards_read = Index(version_folder(out, manifest), manifest), work.bytes_read, work.read
        if excluded:
            excluded = excluded.with_found(work.matched)
            excluded.write(out)
    current = _balanced(out, base, weights)
    skipped = current.shards.skipped()
    ambiguous = excluded.on(f.url for f in files).ambiguous if excluded else {}
    unclear = {as_text(line) for line in ambiguous}
    unmatched = [line for line in excluded.without_sample(exclude or Exclusions()) if line not in unclear]
    if unmatched:
        log.warning(_unmatched_lines(unmatched))
    if ambiguous:
        log.warning(ambiguous_lines("exclusion list", ambiguous))
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
        len(ambiguous),
        base.labelled() if label else 0,
        {finding.kind: {"count": finding.count, "names": finding.names} for finding in findings(base, _noted(left_out, gone))},
    )


def _noted(left_out: Skipped | None, gone: list[str]) -> Skipped:
    noted = Skipped()
    noted.add(left_out or Skipped())
    for url in gone:
        noted.note("shard_missing", url)
    return noted


def _without_missing(mixed: Sequence[Mixed], shards: Sequence[str], gone: set[str]) -> list[Mixed]:
    """The data sets with the numbers of shards that exist."""
    ends = np.cumsum([0, *(source.shards for source in mixed)]).tolist()
    return [
        replace(source, shards=sum(url not in gone for url in shards[first:end]))
        for source, first, end in zip(mixed, ends[:-1], ends[1:], strict=True)
    ]


def _unmatched_lines(unmatched: list[str]) -> str:
    few = ", ".join(unmatched[:EXAMPLES]).replace("\t", "<tab>") + (", ..." if len(unmatched) > EXAMPLES else "")
    return (
        f"{len(unmatched):,} lines of the exclusion list match no sample ({few}). A line is KEY, a sample's name in the tar without "
        f"extension, or SHARD<tab>KEY. These lines are kept for later versions."
    )


def _balanced(out: Path, base: Index, weights: Weights | None) -> Index:
    """Makes the requested version, plain or balanced, the current one."""
    manifest = read_manifest(out)
    if weights is None:
        if manifest != base.manifest:
            make_current(out, base.manifest)
        return base
    if manifest is None or (manifest.get("weights"), manifest.get("base")) != (weights.digest(), base.manifest["version"]):
        manifest = write_balanced(base, weights, out)
    return Index(version_folder(out, manifest), manifest)


def _base(out: Path, label: str | None, members: tuple[str, ...]) -> Index | None:
    """The current version without repeats, if it is complete and has labels of the same kind."""
    try:
        manifest = read_manifest(out)
        if manifest is not None and "base" in manifest:
            manifest = read_manifest(out / manifest["base"])
        if manifest is None or (manifest["label"], tuple(manifest.get("members", ()))) != (label, members):
            return None
        folder = version_folder(out, manifest)
        return Index(folder, manifest) if is_whole(folder, manifest) else None
    except (UserError, OSError, pa.ArrowInvalid, KeyError):
        return None  # build_index writes it again


def _is_current(index: Index, files: list[ShardFile], settings: dict[str, Any], sources: list[dict[str, Any]]) -> bool:
    old_sources = [{"weight": s["weight"], "shards": s["shards"]} for s in index.manifest["sources"]]
    return index.manifest["excluded"] == settings["excluded"] and old_sources == sources and index.shards.files() == files


class _Work:
    """The samples of all shards in order. Unchanged shards are copied from the current version."""

    def __init__(
        self,
        files: list[ShardFile],
        label: str | None,
        members: tuple[str, ...],
        excluded: Excluded,
        current: Index | None,
        read: Any,
    ) -> None:
        self._files, self._excluded, self._current, self._read = files, excluded, current, read
        places = {} if current is None else {file: number for number, file in enumerate(current.shards.files())}
        self._known = {number: places[file] for number, file in enumerate(files) if file in places}
        self._requests = [(f.url, n, label, f.version, members) for n, f in enumerate(files) if n not in self._known]
        self.bytes_read, self.read = 0, len(self._requests)
        self.matched: dict[Line, str] = {}

    def found(self) -> Iterator[ShardSamples]:
        fresh = self._read(self._requests)
        for number, file in enumerate(self._files):
            samples = self._copied(number) if number in self._known else next(fresh)
            self.bytes_read += samples.bytes_read
            samples, matched = without(samples, file.url, self._excluded)
            self.matched |= dict.fromkeys(matched, file.url)
            yield samples

    def _copied(self, number: int) -> ShardSamples:
        assert self._current is not None
        shard = self._current.shards[self._known[number]]
        lines = renumbered(self._current.table(self._known[number]), number - self._known[number])
        return ShardSamples(lines, shard.skipped, 0, shard.whole, shard.probe)


def without(samples: ShardSamples, url: str, excluded: Excluded) -> tuple[ShardSamples, set[Line]]:
    """The samples of the shard `url` without the excluded ones, and the lines of the list that matched."""
    keys = samples.lines["key"].to_pylist() if excluded else []
    matched = excluded.matching(url, keys)
    if not matched:
        return samples, matched
    removed = {key for _, key in matched}
    kept = np.array([key not in removed for key in keys])
    skipped = Skipped()
    skipped.add(samples.skipped)
    for number in np.flatnonzero(~kept).tolist():
        skipped.note("excluded", keys[number])
    return replace(samples, lines=samples.lines.filter(pa.array(kept)), skipped=skipped), matched


def _reported(found: Iterable[ShardSamples], total: int, progress: Callable[[int, int], None] | None) -> Iterator[ShardSamples]:
    for number, samples in enumerate(found):
        yield samples
        if progress is not None:
            progress(number + 1, total)


def read_in_threads(requests: list[Request], threads: int = THREADS) -> Iterator[ShardSamples]:
    """Reads shards in the order of the requests, with a bounded number of reads ahead."""
    waiting: deque[Future[ShardSamples]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for request in requests:
            waiting.append(pool.submit(read_shard, *request))
            if len(waiting) >= 2 * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def shard_files(shards: Sequence[str], missing: Literal["stop", "skip"] = "stop") -> tuple[list[ShardFile], list[str]]:
    """Sizes and versions of shards, and the shards that do not exist. Many shards in one remote folder are listed.

    Raises UserError for a shard that can't be reached, for a missing one unless it is left out, and if all are missing.
    """
    if not shards:
        raise UserError("There are no shards to index: pass at least one tar.")
    known = {url: found for folder in _crowded(shards) for url, found in _listed(folder).items()}

    def one(url: str) -> ShardFile | Exception:
        if is_command(url):
            return ShardFile(url, 0, "")
        try:
            return ShardFile(url, *(known.get(url) or stat(url)))
        except (OSError, BaseError) as error:
            return error

    with ThreadPoolExecutor(THREADS) as pool:
        answers = dict(zip(distinct := list(dict.fromkeys(shards)), pool.map(one, distinct), strict=True))
    failed = {url: answer for url, answer in answers.items() if isinstance(answer, Exception)}
    gone = [url for url, error in failed.items() if is_missing(error)]
    for url, error in failed.items():
        if url not in gone or missing == "stop" or len(gone) == len(answers):
            raise UserError(_why_unusable(url, error, len(gone), len(answers)))
    return [answer for url in shards if isinstance(answer := answers[url], ShardFile)], gone


def _why_unusable(url: str, error: Exception, gone: int, shards: int) -> str:
    text = explain(url, error)
    text = text if "://" in url else f"Shard {text}"
    if not is_missing(error) or shards == 1:
        return text
    return f"{text} {gone:,} of {shards:,} shards do not exist; --missing skip or data.missing=skip goes on without missing ones."


def _crowded(shards: Sequence[str]) -> list[str]:
    buckets = sorted(url.rpartition("/")[0] + "/" for url in shards if url.startswith(("s3://", "gs://")))
    return [folder for folder, urls in groupby(buckets) if len(list(urls)) >= _LISTED]


def _listed(folder: str) -> dict[str, tuple[int, str]]:
    try:
        return {url: (found.size, found.version) for url, found in listing(folder)}
    except (OSError, BaseError):
        return {}  # credentials that can read objects may not be allowed to list them
