"""Builds the index and the plan of a run from its configuration."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from swav_platform.config import Data, Source
from swav_platform.data.index.build import Mixed, Request, build_index
from swav_platform.data.index.exclusions import Exclusions
from swav_platform.data.index.lookup import Index
from swav_platform.data.index.shard import ShardSamples, Skipped
from swav_platform.data.index.sources import find_shards, refusal
from swav_platform.data.order.mix import MixedPlan, Part
from swav_platform.data.order.plan import Plan, PlanSpec
from swav_platform.data.order.streams import Streams
from swav_platform.errors import UsageError

log = logging.getLogger("swav")


@dataclass(frozen=True)
class Shards:
    """Shards in the order of their sources, the sources if these have weights, and what the search for shards left out."""

    urls: list[str]
    mixed: list[Mixed]
    left_out: Skipped


def open_or_build(
    data: Data,
    out: Path,
    *,
    shards: Shards | None = None,
    progress: Callable[[int, int], None] | None = None,
    read: Callable[[list[Request]], Iterator[ShardSamples]] | None = None,
) -> Index:
    """Opens data.index, or indexes the sources into `out` if that index does not exist or is out of date.

    shards: the result of `shards_of`, if known.
    Raises UsageError if the configuration names no data and UserError if the data can't be read.
    """
    if data.index:
        index = open_index(data.index, allow_pipe=data.allow_pipe)
        if data.members and data.members != index.members:
            raise UsageError(
                f"data.members={list(data.members)} does not fit the index {data.index}, which has {list(index.members) or 'all images'}. "
                f"Index the shards again with --members, or remove the setting."
            )
        return index
    shards = shards or shards_of(data)
    report = build_index(
        shards.urls,
        out,
        members=data.members,
        exclude=Exclusions.of_file(data.exclude) if data.exclude else None,
        mixed=shards.mixed,
        missing=data.missing,
        left_out=shards.left_out,
        progress=progress,
        read=read,
    )
    for line in report.lines():
        log.warning(line)
    return Index.open(out)


def open_index(path: str | Path, *, allow_pipe: bool) -> Index:
    """Opens an index. Raises UsageError if there is none, or if it contains shell commands without `allow_pipe`."""
    index = Index.open(path)
    if (commands := index.shards.commands()) and not allow_pipe:
        raise UsageError(refusal(commands[0], f"the index in {path}"))
    return index


def shards_of(data: Data) -> Shards:
    """The shards of all sources. Raises UsageError if there is no source and UserError if a storage does not answer."""
    if not data.sources:
        raise UsageError("No images to learn from: pass --data PATTERN (shards) or data.index=FOLDER (made by `swav index`).")
    left_out, urls, mixed = Skipped(), list[str](), list[Mixed]()
    for patterns, weight in _sources(data):
        found = find_shards(patterns, allow_pipe=data.allow_pipe, missing=data.missing)
        left_out.add(found.left_out)
        urls += found.shards
        mixed.append(Mixed(weight, len(found.shards)))
    return Shards(urls, mixed if data.mixed else [], left_out)


def _sources(data: Data) -> list[tuple[list[str], float]]:
    """Patterns that are one data set, and its weight."""
    if not data.mixed:
        return [(list(data.patterns), 1.0)]
    return [([s.pattern], s.weight) if isinstance(s, Source) else ([s], 1.0) for s in data.sources]


def labelled(index: Index, out: Path, label: str) -> Index:
    """Builds an index with labels in `out`, from the same shards (each once) and with the same exclusions.

    label: as in `build_index`. Raises UserError if a shard no longer exists.
    """
    urls = dict.fromkeys(file.url for file in index.shards.files())  # mixed sources may share shards
    build_index(list(urls), out, label=label, members=index.members, exclude=index.excluded)
    return Index.open(out)


def plan_of(index: Index, data: Data, seed: int) -> Plan | MixedPlan:
    """The order in which a run consumes an index. Raises UsageError if a source has no sample."""
    spec = PlanSpec(index.samples, seed, data.row_size, data.block, data.window)
    parts = [Part(source["first"], source["samples"], source["weight"]) for source in index.manifest["sources"]]
    if empty := [number for number, part in enumerate(parts) if not part.samples]:
        raise UsageError(
            f"Source {empty[0] + 1} of data.sources has no usable sample: remove it, or run `swav index` to see what was skipped."
        )
    return MixedPlan(spec, tuple(parts)) if parts else Plan(spec)


def streams_of(index: Index, data: Data, seed: int) -> Streams:
    """The order of `plan_of`, split into data.streams streams. Raises UsageError if a source has no sample."""
    return Streams(plan_of(index, data, seed), data.streams)


def check_one_pass(plan: Plan | MixedPlan, data: Data, rows_per_step: int, steps: int) -> None:
    """Raises UsageError if `steps` would use a sample twice although data.one_pass forbids it."""
    once = plan.rows_once // rows_per_step
    if data.one_pass and not once:
        raise UsageError(
            "One pass over this data is less than a step, so nothing would be learned: lower train.batch or add data."
        )
    if data.one_pass and steps > once:
        raise UsageError(
            f"{steps:,} steps use samples twice, which data.one_pass forbids: set train.steps to at most {once:,} or add data."
        )
