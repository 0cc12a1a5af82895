"""Converts a checkpoint to a model package, which can be registered and served."""

from __future__ import annotations

from pathlib import Path

from swav_platform.images.decoding.decode import codec_fingerprint
from swav_platform.models.package import save_package
from swav_platform.runs.folder import RunFolder
from swav_platform.runs.storage import Place
from swav_platform.training.checkpoints import store as checkpoints
from swav_platform.training.optimisation.averages import split


def export_package(folder: RunFolder, checkpoint: Place) -> Path:
    """Writes the model package of a run and returns its folder. Uses averaged weights if the checkpoint has them."""
    info, snapshot = folder.info(), checkpoints.load(checkpoint)
    averages, _ = split(snapshot.optimizer)
    path = save_package(
        folder.path / "model",
        {**snapshot.model, **averages},
        folder.config(),
        name=info["model_name"],
        run=folder.name,
        run_id=info["run_id"],
        index_digest=info["index_digest"],
        codec=codec_fingerprint(),
    )
    folder.publish("model")
    return path
