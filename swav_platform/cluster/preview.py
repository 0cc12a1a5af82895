"""What a run would be trained on first, to look at before it is started. No Ray is started."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path

from swav_platform.cluster.data_task import rows
from swav_platform.cluster.stream_job import StreamJob
from swav_platform.config import Config
from swav_platform.data.datasets import open_or_build
from swav_platform.images.contact_sheet import POSITIONS, contact_sheet
from swav_platform.run_folder import write_text


def preview(config: Config, path: Path) -> dict[str, object]:
    """Writes a contact sheet of the run's first positions, made by the code that makes its rows.

    `bad` of the answer: how many images these positions met that could not be used, by reason.

    Raises UsageError or UserError for sources without a sample.
    """
    config = config.model_copy(update={"data": config.data.model_copy(update={"photometric": "worker"})})
    with tempfile.TemporaryDirectory() as folder:
        index = open_or_build(config.data, Path(folder))
        job = StreamJob(config, str(index.path), tasks=1)
        row = next(rows(job, 0, 1))
    write_text(path, contact_sheet(row, config))
    shown = row.position[:POSITIONS].tolist()
    bad = {event.sample: event.outcome.word for event in row.events if event.position in shown}
    return {"preview": str(path), "positions": len(shown), "bad": Counter(bad.values())}
