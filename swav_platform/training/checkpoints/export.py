"""From a checkpoint to the package that is registered and served."""

from __future__ import annotations

from pathlib import Path

from swav_platform.images.decoding.decode import codec_fingerprint
from swav_platform.models.package import save_package
from swav_platform.runs.folder import RunFolder
from swav_platform.training.checkpoints import store as checkpoints
from swav_platform.training.optimisation.averages import split


def export_package(folder: RunFolder, checkpoint: Path) -> Path:
    """Writes the run's model package from one of its checkpoints, averaged weights where it kept them; returns its folder."""
    info, snapshot = folder.info(), checkpoints.load(checkpoint)
    averages, _ = split(snapshot.optimizer)
    return save_package(
        folder.package,
        {**snapshot.model, **averages},
        folder.config(),
        name=info["model_name"],
        run=folder.name,
        run_id=info["run_id"],
        index_digest=info["index_digest"],
        codec=codec_fingerprint(),
    )
