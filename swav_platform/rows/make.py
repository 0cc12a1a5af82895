"""Makes a row of its samples: decodes, crops and resizes them in place, and uses replacement samples for those that fail."""

from __future__ import annotations

import functools
import time

import numpy as np
import xxhash

from swav_platform.config import Config, ImagePolicy, ViewGroup
from swav_platform.data.ledger.outcomes import Event, Outcome
from swav_platform.data.order.plan import RowSpec
from swav_platform.data.samples import ReadFailure
from swav_platform.images.decoding.confined import NoDecoderError
from swav_platform.images.decoding.decode import decode_reduced, thumbnail
from swav_platform.images.decoding.refused import Refused
from swav_platform.images.look import Look, look_of
from swav_platform.images.views import colour_kernel, crops, params
from swav_platform.images.views.randomness import uniforms
from swav_platform.rows.fetch import Fetch, Replacement
from swav_platform.rows.layout import Costs, Row, RowLayout
from swav_platform.rows.table import from_table, to_table

__all__ = ["Row", "RowLayout", "from_table", "make_row", "to_table", "view_hashes"]

ATTEMPTS = 4
"""The position's own sample and three replacement samples."""

GREY = 128

_EXPENSIVE = (Outcome.DECODE_TIMEOUT, Outcome.DECODE_MEMORY, Outcome.DECODE_CRASH)
"""Outcomes without a thumbnail, because making one would cost as much again."""

Proposals = list[list[list[crops.Proposal]]]
"""[group][R][V]."""


def make_row(spec: RowSpec, fetch: Fetch, replacement: Replacement, config: Config) -> Row:
    """Makes the row that a plan specifies.

    fetch is called once for the row and once for each round of replacement samples. The pixels of a position depend only on its own
    random numbers and on the image that fills it. No image makes this function raise: a failure becomes an event of the row.
    Raises NoDecoderError if this machine can't decode.
    """
    began = time.perf_counter()
    row = _blank(spec, RowLayout.of(config))
    proposals = _draw(row, config)
    tries = [(slot, int(sample)) for slot, sample in enumerate(spec.samples)]
    for attempt in range(ATTEMPTS):
        tries = _attempt(row, tries, attempt, fetch, proposals, config)
        if not tries or attempt + 1 == ATTEMPTS:
            break
        tries = [(slot, replacement(int(row.position[slot]), attempt + 1)) for slot, _ in tries]
    for slot, _ in tries:
        _turn_grey(row, slot)
    row.events.sort(key=lambda event: (event.position, event.attempt))
    if config.data.photometric == "worker":
        _photometrics(row)
    row.costs.views_seconds = time.perf_counter() - began - row.costs.read_seconds - row.costs.decode_seconds
    return row


def _blank(spec: RowSpec, layout: RowLayout) -> Row:
    packed = np.zeros(layout.nbytes, np.uint8)  # zeros, so that the gaps between its parts are equal in every row
    count = layout.row_size
    return Row(
        row=spec.row,
        views=layout.views(packed),
        params=layout.params(packed),
        position=np.array(spec.positions, np.int64),
        sample=np.array(spec.samples, np.int64),
        outcome=np.where(spec.filler, Outcome.FILLER, Outcome.OK).astype(np.uint8),
        weight=np.ones(count, np.float32),
        key=[""] * count,
        shard=[""] * count,
        stand_in_for=[None] * count,
        events=[],
        packed=packed,
        layout=layout,
        content=np.zeros(count, np.uint64),
        look=np.zeros(count, np.uint8),
    )


def _draw(row: Row, config: Config) -> Proposals:
    """Draws all that is random: writes the photometric parameters into the row and returns proposals for the crops."""
    groups = list(config.views.values())
    numbers = uniforms(config.seed, row.position, sum(group.count for group in groups), params.SLOTS)
    proposals, first = [], 0
    for group, columns in zip(groups, row.params, strict=True):
        mine = numbers[:, first : first + group.count]
        proposals.append(crops.proposals(mine, group))
        columns[..., len(params.GEOMETRY) :] = params.photometric_params(mine, group.photometric).swapaxes(0, 1)
        first += group.count
    return proposals


def _attempt(
    row: Row, tries: list[tuple[int, int]], attempt: int, fetch: Fetch, proposals: Proposals, config: Config
) -> list[tuple[int, int]]:
    """Fills slots with samples. Records an event for each (slot, sample) that failed, and returns them."""
    began = time.perf_counter()
    fetched = fetch([sample for _, sample in tries])
    row.costs.read_seconds += time.perf_counter() - began
    failed = []
    for slot, sample in tries:
        line, data = fetched[sample]
        if attempt == 0:
            row.key[slot], row.shard[slot] = line.key, line.name
        refused = _fill(row, slot, data, proposals, config)
        if refused is not None:
            failed.append((slot, sample))
            small = (
                None if isinstance(data, ReadFailure) or refused.outcome in _EXPENSIVE else thumbnail(data, config.data.images)
            )
            position = int(row.position[slot])
            row.events.append(Event(position, attempt, line.number, line.key, line.name, refused.outcome, refused.detail, small))
            if attempt == 0:
                row.outcome[slot] = refused.outcome
        elif attempt > 0:
            row.stand_in_for[slot] = row.key[slot]
            row.sample[slot], row.key[slot], row.shard[slot] = sample, line.key, line.name
    return failed


def _fill(row: Row, slot: int, data: bytes | ReadFailure, proposals: Proposals, config: Config) -> Refused | None:
    """Writes the views of one image into a slot, or returns the reason why not."""
    if isinstance(data, ReadFailure):
        return Refused(data.outcome, data.detail)
    row.costs.read_bytes += len(data)
    try:
        proposed = [group[slot] for group in proposals]
        look = cut_views(data, proposed, config.data.images, list(config.views.values()), row.views, row.params, slot, row.costs)
    except Refused as refused:
        return refused
    except NoDecoderError:
        raise
    except MemoryError:
        return Refused(Outcome.DECODE_MEMORY, "not enough memory for its views")
    except Exception as error:  # one image must not fail the row
        return Refused(Outcome.CORRUPT, f"{type(error).__name__}: {error}")
    row.content[slot], row.look[slot] = xxhash.xxh3_64_intdigest(data), look
    return None


def cut_views(
    data: bytes,
    proposed: list[list[crops.Proposal]],
    policy: ImagePolicy,
    groups: list[ViewGroup],
    views: list[np.ndarray],
    columns: list[np.ndarray],
    slot: int,
    costs: Costs,
) -> Look:
    """Writes an image's views [V, R, H, W, 3] and the geometry columns of its parameters [V, R, P] into a slot of a row.

    proposed: proposals of each group and view. Adds the decoder's time to `costs`. Returns what is odd about the image. Raises Refused
    for an image that gives no sample.
    """

    @functools.cache
    def chosen(height: int, width: int) -> list[list[crops.Crop]]:
        each = zip(groups, proposed, strict=True)
        return [[crops.choose(height, width, proposal, group.ratio) for proposal in mine] for group, mine in each]

    began = time.perf_counter()
    try:
        image = decode_reduced(data, policy, lambda *size: crops.reduction(chosen(*size), groups))
    finally:
        costs.decode_seconds += time.perf_counter() - began
    look = look_of(image.pixels, image.deep)
    if policy.blank == "reject" and look.blank:
        raise Refused(Outcome.BLANK, f"looks {look.word}: data.images.blank is reject")
    size = image.height, image.width
    for number, (group, boxes) in enumerate(zip(groups, chosen(*size), strict=True)):
        flips = [proposal.flip for proposal in proposed[number]]
        for view, (box, flip) in enumerate(zip(boxes, flips, strict=True)):
            crops.cut(image, box, flip, group.interpolation, views[number][view, slot])
        geometry = [(*box, flip, *size) for box, flip in zip(boxes, flips, strict=True)]
        columns[number][:, slot, : len(params.GEOMETRY)] = geometry
    return look


def _turn_grey(row: Row, slot: int) -> None:
    row.weight[slot] = 0
    for views, columns in zip(row.views, row.params, strict=True):
        views[:, slot] = GREY
        columns[:, slot, : len(params.GEOMETRY)] = 0
        columns[:, slot, len(params.GEOMETRY) :] = params.NEUTRAL


def _photometrics(row: Row) -> None:
    """Changes the colours in place; in `device` mode the trainer does this."""
    for views, columns in zip(row.views, row.params, strict=True):
        colour_kernel.to_uint8(views, columns, out=views)


def view_hashes(row: Row) -> np.ndarray:
    """xxh3-64 hashes uint64 [R] of each position's views, then its parameters, in the order of groups and views."""
    hashes = np.empty(row.layout.row_size, np.uint64)
    parts = [part[view] for group in (row.views, row.params) for part in group for view in range(len(part))]
    hasher = xxhash.xxh3_64()
    for slot in range(row.layout.row_size):
        hasher.reset()
        for part in parts:
            hasher.update(part[slot])
        hashes[slot] = hasher.intdigest()
    return hashes
