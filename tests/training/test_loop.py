from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from swav_platform.data.ledger.ledger import Ledger
from swav_platform.data.ledger.sample_log import check
from swav_platform.errors import UserError
from swav_platform.training.checkpoints.store import latest_valid, load


@pytest.fixture
def copied(broken: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(broken, tmp_path / "run"))


def test_what_a_run_leaves(rig: ModuleType, whole: Path) -> None:
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(10))
    assert [line["step"] for line in lines if "train/grad_norm" in line] == [0, 2, 5, 8, 9]
    wanted = {
        "train/loss",
        "train/lr",
        "train/grad_norm",
        "health/loss_minus_ln_k",
        "health/code_entropy",
        "health/effective_rank",
    }
    wanted |= {
        "health/prototypes_used",
        "health/feature_std",
        "data/images_per_second",
        "data/wait_share",
        "data/quarantined_total",
        "data/blank_total",
        "data/copies_total",
    }
    wanted |= {"data/read_ms", "data/decode_ms", "data/views_ms", "data/image_bytes"}
    wanted |= {"train/collective_share", "train/update_share", "health/embedding_norm", "health/rankme", "health/rankme_backbone"}
    wanted |= {"health/separation", "health/lidar"}
    assert wanted | {"step", "loss", "lr", "time"} == set(lines[0])
    assert [path.name for path in sorted((whole / "checkpoints").iterdir())] == [f"step-{n:09d}" for n in (4, 8, 10)]
    assert len(Ledger.read(whole / "ledger")) == 0


def test_running_statistics_move_once_a_step(whole: Path) -> None:
    weights = load(latest_valid(whole / "checkpoints")).model
    for name in ("encoder.bn1", "encoder.layer4.0.bn2", "projection_head.1"):
        assert weights[f"{name}.num_batches_tracked"] == 10
        assert (weights[f"{name}.running_mean"] != 0).all()
    first = load(whole / "checkpoints" / "step-000000004").model["encoder.bn1.running_var"]
    assert not torch.equal(first, weights["encoder.bn1.running_var"])


def test_the_same_seed_twice_to_the_last_bit(rig: ModuleType, whole: Path, tmp_path: Path) -> None:
    torch.manual_seed(99)  # no part of it
    rig.train(rig.config(), tmp_path)
    assert rig.losses(tmp_path) == rig.losses(whole)
    rig.train(rig.config(seed=32), tmp_path / "other")
    assert rig.losses(tmp_path / "other") != rig.losses(whole)


def test_resumed_it_is_bit_equal_to_the_unbroken_run(rig: ModuleType, whole: Path, copied: Path) -> None:
    result = rig.train(rig.config(), copied, resume=True)
    assert rig.losses(copied) == rig.losses(whole)
    one, two = (load(latest_valid(folder / "checkpoints")) for folder in (whole, copied))
    for part in ("model", "optimizer", "method"):
        a, b = getattr(one, part), getattr(two, part)
        assert a.keys() == b.keys()
        assert all(torch.equal(a[name], b[name]) for name in a), part
    assert (result.steps, result.images, result.loss_first) == (10, 320, rig.losses(whole)[0])


@pytest.mark.parametrize("optimiser", ["lars", "adamw"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_resuming_other_optimisers_and_precisions(rig: ModuleType, tmp_path: Path, optimiser: str, precision: str) -> None:
    settings = rig.config(train__optimiser__name=optimiser, train__precision=precision, train__steps=4, train__checkpoint_every=2)
    rig.train(settings, tmp_path / "whole")
    with pytest.raises(ConnectionError):
        rig.train(settings, tmp_path / "broken", stop=3 * 8)
    rig.train(settings, tmp_path / "broken", resume=True)
    assert rig.losses(tmp_path / "broken") == rig.losses(tmp_path / "whole")


def test_a_damaged_checkpoint_is_passed_over(rig: ModuleType, whole: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(whole, tmp_path / "run"))
    (run / "checkpoints" / "step-000000010" / "MANIFEST.json").unlink()
    weights = run / "checkpoints" / "step-000000008" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    rig.train(rig.config(), run, resume=True)  # from step 4
    assert rig.losses(run) == rig.losses(whole)


def test_checkpoints_that_are_all_damaged_are_not_lost_in_silence(rig: ModuleType, copied: Path) -> None:
    state = copied / "checkpoints" / "step-000000004" / "state.json"
    state.write_text("{}")
    with pytest.raises(UserError, match=r"step-000000004.*copy, or delete"):
        rig.train(rig.config(), copied, resume=True)


def test_a_line_that_a_crash_cut_off(rig: ModuleType, whole: Path, copied: Path) -> None:
    with (copied / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')
    rig.train(rig.config(), copied, resume=True)
    assert rig.losses(copied) == rig.losses(whole)


def test_a_crash_between_the_checkpoint_and_what_follows_it(rig: ModuleType, whole: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(whole, tmp_path / "run"))
    shutil.rmtree(run / "ledger")
    rig.train(rig.config(), run, resume=True)
    assert len(Ledger.read(run / "ledger")) == 0


def test_a_run_that_is_done_is_done(rig: ModuleType, whole: Path) -> None:
    before = (whole / "metrics.jsonl").read_text()
    result = rig.train(rig.config(), whole, resume=True)
    assert result.checkpoint == whole / "checkpoints" / "step-000000010"
    assert (whole / "metrics.jsonl").read_text() == before


def test_resuming_what_never_had_a_checkpoint_starts_anew(rig: ModuleType, whole: Path, tmp_path: Path) -> None:
    with pytest.raises(ConnectionError):
        rig.train(rig.config(), tmp_path, stop=20)
    rig.train(rig.config(), tmp_path, resume=True)
    assert rig.losses(tmp_path) == rig.losses(whole)


def test_a_run_is_not_started_over_another(rig: ModuleType, copied: Path) -> None:
    with pytest.raises(UserError, match=r"--resume.*another name"):
        rig.train(rig.config(), copied)
    assert latest_valid(copied / "checkpoints")


@pytest.mark.parametrize(("change", "what"), [({"seed": 7}, "configuration"), ({"index_digest": "other"}, "index")])
def test_another_run_is_not_gone_on_with(rig: ModuleType, copied: Path, change: dict, what: str) -> None:
    settings = rig.config(seed=change.pop("seed", 31))
    with pytest.raises(UserError, match=f"another {what}"):
        rig.train(settings, copied, resume=True, **change)


def test_settings_that_change_no_results_may_change(rig: ModuleType, whole: Path, copied: Path) -> None:
    rig.train(rig.config(train__checkpoint_every=3, train__log_every=1, train__keep_checkpoints=1), copied, resume=True)
    assert rig.losses(copied) == rig.losses(whole)
    assert [path.name for path in (copied / "checkpoints").iterdir()] == ["step-000000010"]


@pytest.mark.parametrize("fault", ["skipped", "repeated", "short"])
def test_a_stream_out_of_order_ends_the_run(rig: ModuleType, tmp_path: Path, fault: str) -> None:
    settings = rig.config()
    numbers = {"skipped": [0, 1, 3], "repeated": [0, 1, 1], "short": [0, 1]}[fault]
    message = {"skipped": "row 3 came", "repeated": "row 1 came", "short": "the stream ended"}[fault]
    with pytest.raises(UserError, match=f"row 2 .*{message}"):
        rig.train(settings, tmp_path, rows=lambda first, last: (rig.row(settings, k) for k in numbers))


def test_a_loss_that_is_no_number_ends_the_run_and_what_was_committed_stays(rig: ModuleType, whole: Path, copied: Path) -> None:
    def spoilt(first: int, last: int):
        for k in range(first, last):
            one = rig.row(rig.config(), k)
            if k == 45:
                one.weight[2] = np.nan
            yield one

    with pytest.raises(UserError, match=r"loss of step 5 is nan.*optimiser\.lr"):
        rig.train(rig.config(), copied, rows=spoilt, resume=True)
    rig.train(rig.config(), copied, resume=True)
    assert rig.losses(copied) == rig.losses(whole)


def test_too_many_unreadable_images_end_the_run(rig: ModuleType, tmp_path: Path) -> None:
    settings = rig.config(data__max_quarantine_fraction=0.2)
    with pytest.raises(UserError, match=r"(?s)24 of the first 96 images.*corrupt.*shard-7\.tar.*swav ledger"):
        rig.train(settings, tmp_path, bad=tuple(range(0, 320, 4)), samples=90)
    assert Ledger.read(tmp_path / "ledger").outcomes() == {"corrupt": 24}


def test_unreadable_images_are_counted_and_kept_over_a_crash(rig: ModuleType, tmp_path: Path) -> None:
    bad = (3, 50, 130, 131, 200, 319)
    with pytest.raises(ConnectionError):
        rig.train(rig.config(), tmp_path, bad=bad, stop=6 * 8 + 3)
    assert len(Ledger.read(tmp_path / "ledger")) == 2  # of what was committed
    result = rig.train(rig.config(), tmp_path, bad=bad, resume=True)
    assert result.quarantined == 6
    assert [event.position for event in Ledger.read(tmp_path / "ledger").events()] == list(bad)


def test_the_sample_log_has_each_position_once(rig: ModuleType, tmp_path: Path) -> None:
    settings = rig.config(data__sample_log=str(tmp_path / "log"))
    with pytest.raises(ConnectionError):
        rig.train(settings, tmp_path / "run", stop=6 * 8 + 3)
    rig.train(settings, tmp_path / "run", resume=True)
    found = check(tmp_path / "log")
    assert (found.ok, found.positions, found.duplicates, found.missing, found.steps) == (True, 320, 0, 0, 10)


def test_a_disk_that_is_full_at_a_checkpoint(rig: ModuleType, whole: Path, copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from swav_platform.training.checkpoints import store as checkpoints

    real = checkpoints._write

    def full(path: Path, data: bytes) -> dict:
        if path.name == "method.safetensors":
            raise OSError(28, "No space left on device")
        return real(path, data)

    monkeypatch.setattr(checkpoints, "_write", full)
    with pytest.raises(UserError, match=r"step-000000008.*No space left on device.*--resume"):
        rig.train(rig.config(), copied, resume=True)
    monkeypatch.undo()
    assert latest_valid(copied / "checkpoints").name == "step-000000004"
    rig.train(rig.config(), copied, resume=True)
    assert rig.losses(copied) == rig.losses(whole)


def test_progress(rig: ModuleType, tmp_path: Path) -> None:
    seen = []
    rig.train(rig.config(train__steps=4), tmp_path, on_progress=seen.append, bad=(3, 50))
    assert [p.step for p in seen] == [0, 1, 2, 3]
    assert [bool(p.metrics) for p in seen] == [True, False, True, True]
    assert all(p.images_per_second > 0 and 0 <= p.wait_share < 1 for p in seen)
    assert seen[0].metrics["health/loss_minus_ln_k"] == pytest.approx(seen[0].loss - np.log(12))
    assert [(p.counters.images, p.counters.quarantined) for p in seen] == [(32, 1), (32, 1), (32, 0), (32, 0)]
    assert [p.metrics.get("data/quarantined/corrupt") for p in seen] == [1, None, 1, None], "since the last step with metrics"


def test_colours_changed_on_the_device(rig: ModuleType, tmp_path: Path) -> None:
    """Parameters of all zeros change nothing, so both kinds of run see the same pixels."""
    rig.train(rig.config(train__steps=2, data__photometric="device"), tmp_path / "device")
    rig.train(rig.config(train__steps=2), tmp_path / "worker")
    assert rig.losses(tmp_path / "device") == pytest.approx(rig.losses(tmp_path / "worker"), abs=1e-5)
