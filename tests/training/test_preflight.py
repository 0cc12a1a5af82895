from __future__ import annotations

import json
from types import ModuleType

import pytest
import torch
import yaml

from swav_platform.cli.main import run
from swav_platform.config import load
from swav_platform.methods.build import build_method
from swav_platform.models.encoders import build_encoder
from swav_platform.training.footprint import _kept, footprint
from swav_platform.training.passes import Passes
from swav_platform.training.preflight import schedule, warnings

QUIET = ["train.batch=4096", "train.steps=31300", "data.row_size=64", "train.workers=64"]  # as published: nothing to warn of


def said(*overrides: str) -> list[str]:
    config = load(None, [*QUIET, *overrides])
    return list(warnings(config, schedule(config, None)))


def test_the_published_recipe_is_fine() -> None:
    assert said() == []
    small = [
        "train.batch=256",
        "train.workers=4",
        "train.optimiser.lr=0.6",
        "method.queue_length=3840",
        "method.queue_start=75060",
    ]
    assert said(*small, "train.steps=1000000") == []


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["method.prototypes=5000"], "4,096 samples.*5,000 prototypes.*4,096 or more"),
        (["method.prototypes=[3000, 5000]"], "5,000 prototypes"),
        (["method.queue_length=5000", "method.queue_start=5"], "queue_length=5,000 .*4,096"),
        (["method.queue_length=8192", "method.queue_start=31299"], "never used.*31,301"),
        (["method.epsilon=0.01", "train.precision=bf16"], r"epsilon=0\.01 is small for train\.precision=bf16.*0\.39"),
        (["method.freeze_prototypes=31300"], "Prototypes never learn"),
        (["train.optimiser.lr=0.3"], r"lr=0\.3 .*usual.*about 4\.8"),
        (["train.optimiser.name=sgd", "train.optimiser.lr=10"], r"usual.* of sgd .*about 0\.8"),
        (["train.optimiser.name=adamw"], "large for adamw"),
        (["train.steps=3130"], "learning rate never"),
        (["train.workers=60"], "some have 2 and some 1.*53 %"),
        (["train.accumulate=recompute"], "saves nothing"),
        (["model.normalisation=step", "train.workers=32"], "normalisation=step .*2 rows of a worker"),
        (["method.name=sela", "method.freeze_prototypes=31300"], "Prototypes never learn"),
        (["method.name=mean_shift", "method.bank_length=4000"], "bank_length=4,000 .*4,096"),
        (
            ["method.name=mean_shift", "method.bank_length=4096", "method.neighbours=5000"],
            "holds 4,096 embeddings.*neighbours=5,000",
        ),
        (["train.compile=true", "model.normalisation=step"], "each batch norm waits"),
        (["data.row_size=8"], "Batch statistics of 8 images"),
    ],
)
def test_what_looks_wrong_is_told(overrides: list[str], words: str) -> None:
    import re

    found = [w for w in said(*overrides) if re.search(words, w)]
    assert len(found) == 1, said(*overrides)


def test_a_method_without_codes_is_not_told_of_them() -> None:
    assert said("method.name=simclr", "method.prototypes=5000") == []


def test_what_looks_wrong_about_an_epoch_of_memories() -> None:
    def told(samples: int, *overrides: str) -> list[str]:
        config = load(None, [*QUIET, "method.name=deepcluster", *overrides])
        return list(warnings(config, schedule(config, samples)))

    assert told(1_281_167) == []
    assert "first epoch of 313 steps" in told(1_281_167, "train.steps=313")[0]
    assert told(1_281_167, "train.steps=314", "train.optimiser.warmup_steps=0") == []
    few = " ".join(told(2_000))
    assert "3,000 prototypes for 2,000 images" in few
    assert "fewer than train.batch=4,096" in few


def test_schedule() -> None:
    config = load(
        None, ["train.batch=256", "train.epochs=2", "method.queue_length=3900", "method.queue_start=100", "data.row_size=64"]
    )
    assert schedule(config, None).steps is None
    of_run = schedule(config, 10_000)
    assert (of_run.steps, of_run.images, of_run.rows_per_step, of_run.queue_in_use_from) == (78, 78 * 256, 4, 115)
    assert schedule(load(None, ["train.images=1000000"]), None).steps == 3906


@pytest.mark.parametrize("change", [{}, {"model__activation_checkpointing": True}, {"model__normalisation": "step"}], ids=str)
def test_activations_are_those_of_a_real_step(rig: ModuleType, change: dict) -> None:
    settings = rig.config(train__workers=2, **change)
    network = build_method(settings).modules(build_encoder(settings.model)).train()
    rows = [rig.row(settings, k) for k in range(4)]
    together = settings.model.normalisation == "step"
    passes = Passes(network, lambda row: [torch.rand(2 * 4, 3, 16, 16), torch.rand(2 * 4, 3, 8, 8)], together=together)
    assert footprint(settings)[0].activations == pytest.approx(_kept(network, passes, rows), rel=0.02)


def test_memory_and_traffic(rig: ModuleType) -> None:
    settings = rig.config(train__workers=2)
    memory, sent = footprint(settings)
    network = build_method(settings).modules(build_encoder(settings.model))
    assert memory.gradients == sent.gradient_bytes == 4 * sum(p.numel() for p in network.parameters())
    assert (sent.method_collectives, sent.method_bytes) == (3, 3 * 2 * 12 * 4)  # iterations x views x prototypes in float32
    assert sent.normalisation_collectives == 0
    saving, _ = footprint(rig.config(train__workers=2, train__accumulate="recompute", train__ema=0.9))
    assert saving.activations * 4 == memory.activations
    assert saving.weights == 2 * memory.weights
    assert footprint(rig.config(train__workers=2, model__normalisation="step"))[1].normalisation_collectives == 2 * 2 * 13
    assert footprint(rig.config(train__workers=2, method__name="deepcluster"))[1].method_bytes is None


def test_dry_run(root, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = str(root / "configs" / "pretrain" / "cifar10_cpu.yaml")
    assert run(["pretrain", recipe, "--dry-run", "train.accumulate=recompute", "--json"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(found) == {"config", "schedule", "memory", "communication", "warnings", "feed"}
    assert found["feed"]["tasks"] == 1
    assert found["feed"]["images_per_second"] == pytest.approx(1000 / found["feed"]["ms_per_image"])
    assert found["schedule"]["steps"] == found["config"]["train"]["steps"] == 2000
    assert "saves nothing" in found["warnings"][0]
    assert run(["pretrain", recipe, "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert yaml.safe_load(text) == load(recipe).model_dump(mode="json")
    assert "# memory of a worker: weights" in text
    assert "none, one worker" in text
    assert "# data tasks: 1 make about" in text


def test_a_dry_run_knows_the_length_over_small_local_data(root, shards, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = str(root / "configs" / "pretrain" / "small.yaml")
    options = ["--data", str(shards / "*.tar"), "train.batch=16", "data.row_size=16", "train.epochs=1", "--json"]
    assert run(["pretrain", recipe, "--dry-run", *options, "method.name=deepcluster"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["schedule"]["steps"] == found["schedule"]["epoch_steps"] > 0
    assert found["schedule"]["freeze_prototypes"] is None
    assert any("No weight changes" in warning for warning in found["warnings"])


def test_a_dry_run_says_what_is_not_there(root, tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = str(root / "configs" / "pretrain" / "cifar10_cpu.yaml")
    assert run(["pretrain", recipe, "--dry-run", "--data", str(tmp_path / "gone" / "*.tar"), "--data", "s3://no-bucket/x/"]) == 0
    (warning,) = [line for line in capsys.readouterr().out.splitlines() if "this machine" in line]
    assert "gone" in warning


@pytest.mark.parametrize(("override", "name"), [("model.name=resnet51", "resnet51"), ("method.name=swaw", "swaw")])
def test_a_dry_run_refuses_names_that_nobody_knows(root, capsys: pytest.CaptureFixture[str], override: str, name: str) -> None:
    recipe = str(root / "configs" / "pretrain" / "cifar10_cpu.yaml")
    assert run(["pretrain", recipe, "--dry-run", override]) == 2
    assert name in capsys.readouterr().err
