"""A step made again, to the last bit, and what in it is not finite."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from swav_platform.errors import UsageError, UserError
from swav_platform.images.views import photometric
from swav_platform.methods.comm import LocalComm
from swav_platform.rows.layout import Row
from swav_platform.runs.folder import RunFolder
from swav_platform.runs.health_file import read_health
from swav_platform.training.checkpoints import store
from swav_platform.training.replay import replay


def settled(rig: ModuleType, folder: Path, **options: Any) -> tuple[RunFolder, dict[str, Any]]:
    """A run of the rig with its run.json, and what a replay of it needs."""
    settings = rig.config()
    run = RunFolder(folder)
    run.write(settings, index="none", index_digest="i", samples=rig.SAMPLES)
    return run, {"rows": rig.rows(settings, LocalComm()), "device": torch.device("cpu")} | options


def planted(number: int) -> Callable[[Row], list[torch.Tensor]]:
    """Pixels, with a NaN in view 1 of the third image of row `number`."""

    def prepare(row: Row) -> list[torch.Tensor]:
        views = [photometric.normalise(torch.from_numpy(v)) for v in row.views]
        if row.row == number:
            views[0][len(row.weight) + 2, 0, 3, 3] = float("nan")
        return views

    return prepare


@pytest.mark.parametrize("step", [3, 6, 8])
def test_to_the_last_bit(rig: ModuleType, whole: Path, step: int) -> None:
    run, how = settled(rig, whole)
    done = replay(run, step, **how)
    assert (done.loss, done.equal, done.fault) == (rig.losses(whole)[step], True, None)
    assert done.start == max(n for n in (0, 4, 8) if n <= step)


def test_it_names_the_image_whose_pixels_are_not_finite(rig: ModuleType, tmp_path: Path) -> None:
    bad = 6 * 8 + 5
    with pytest.raises(UserError, match="step 6 is nan"):
        rig.train(rig.config(), tmp_path, prepare=planted(bad))
    health = read_health(tmp_path)
    assert health is not None
    assert health.state == "broken"
    assert "swav replay RUN --step 6" in health.do
    run, how = settled(rig, tmp_path, prepare=planted(bad))
    fault = replay(run, 6, **how).fault
    assert fault is not None
    assert (fault.layer, fault.cause, fault.row, fault.view, fault.images) == ("encoder.conv1", "pixels", bad, 1, 1)
    assert (fault.image, fault.position) == (f"k{bad * 4 + 2}", bad * 4 + 2)
    with pytest.raises(UserError, match="in step 6 already"):
        replay(run, 7, **how)


@pytest.mark.parametrize("name", ["encoder.layer2.0.conv1", "projection_head.3", "prototypes"])
def test_it_names_the_layer_whose_weight_is_not_finite(rig: ModuleType, broken: Path, tmp_path: Path, name: str) -> None:
    run, how = settled(rig, tmp_path)
    snapshot = store.load(broken / "checkpoints" / "step-000000004")
    snapshot.model[f"{name}.weight"].view(-1)[0] = float("nan")
    store.save(tmp_path / "checkpoints", snapshot)
    done = replay(run, 4, **how)
    assert done.fault is not None
    assert (done.fault.layer, done.fault.cause, done.start) == (name, "weight", 4)
    assert done.loss != done.loss
    assert done.recorded is None


def test_a_step_that_the_run_does_not_have(rig: ModuleType, whole: Path) -> None:
    run, how = settled(rig, whole)
    with pytest.raises(UsageError, match="steps 0 to 9"):
        replay(run, 10, **how)
