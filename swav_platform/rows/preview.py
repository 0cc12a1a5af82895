"""Shows the first views that a run would train on, before the run starts. Does not use Ray."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path

from swav_platform.atomic import write_text
from swav_platform.config import Config
from swav_platform.data.datasets import open_or_build
from swav_platform.data.index.lookup import Index
from swav_platform.data.outages import Outages
from swav_platform.data.samples import ReadFailure, read_samples
from swav_platform.errors import UserError
from swav_platform.images.decoding.decode import thumbnail
from swav_platform.rows.contact_sheet import POSITIONS, SIDE, contact_sheet
from swav_platform.rows.job import RowJob
from swav_platform.rows.layout import Row
from swav_platform.rows.produce import rows


def preview(config: Config, path: Path) -> dict[str, object]:
    """Writes a contact sheet of the run's first positions, made by the code that makes the run's rows.

    The result's `bad` counts the images of these positions that could not be used, by reason. Raises UsageError or UserError for
    sources without a sample. Raises UserError, after writing the page, if none of these positions has an image.
    """
    config = config.model_copy(update={"data": config.data.model_copy(update={"photometric": "worker"})})
    with tempfile.TemporaryDirectory() as folder:
        index = open_or_build(config.data, Path(folder))
        job = RowJob(config, str(index.path))
        row = next(rows(job, 0, 1))
        shown = row.position[:POSITIONS].tolist()
        images = _images(index, row, config)
    write_text(path, contact_sheet(row, config, images))
    bad = Counter({event.sample: event.outcome.word for event in row.events if event.position in shown}.values())
    if not row.weight[:POSITIONS].any():
        why = ", ".join(f"{count} {word}" for word, count in bad.most_common())
        raise UserError(f"None of the first {len(shown)} positions has a usable image; of those tried: {why}. See {path}.")
    return {"preview": str(path), "positions": len(shown), "bad": bad}


def _images(index: Index, row: Row, config: Config) -> list[bytes | None]:
    """Small JPEGs of the images that fill the positions of the page, None where no image does."""
    policy = config.data.images
    lines = index.lines(row.sample[:POSITIONS])
    contents = read_samples(lines, max_bytes=policy.max_bytes, outages=Outages.of(config.data, index))
    found: list[bytes | None] = []
    for line, weight in zip(lines, row.weight, strict=False):
        data = contents[line.number]
        found.append(thumbnail(data, policy, SIDE) if weight and not isinstance(data, ReadFailure) else None)
    return found
