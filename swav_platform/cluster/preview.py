"""What a run would be trained on first, to look at before it is started. No Ray is started."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path

from swav_platform.cluster.data_task import rows
from swav_platform.cluster.stream_job import StreamJob
from swav_platform.config import Config
from swav_platform.data.datasets import open_or_build
from swav_platform.images.contact_sheet import contact_sheet
from swav_platform.run_folder import write_text


def preview(config: Config, path: Path) -> dict[str, object]:
    """Writes a contact sheet of the run's first positions, made by the code that makes its rows.

    Raises UsageError or UserError for sources without a sample.
    """
    config = config.model_copy(update={"data": config.data.model_copy(update={"photometric": "worker"})})
    with tempfile.TemporaryDirectory() as folder:
        index = open_or_build(config.data, Path(folder))
        job = StreamJob(config, str(index.path), tasks=1)
        row = next(rows(job, 0, 1))
    write_text(path, contact_sheet(row, config))
    bad = Counter(event.outcome.word for event in row.events)
    return {"preview": str(path), "positions": min(16, len(row.position)), "bad": bad}
