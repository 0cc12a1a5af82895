"""Verdicts from records of metrics alone."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from swav_platform.config import Config, from_tree
from swav_platform.training.health.verdict import Judge, verdict

FIXTURES = Path(__file__).parents[2] / "fixtures"
TRAIN = {"batch": 64, "steps": 200, "optimiser": {"name": "sgd", "lr": 0.1, "final_lr": 0.1, "warmup_steps": 10, "start_lr": 0.0}}
HEALTHY = {
    "health/embedding_norm": 1.0,
    "health/separation": 6.0,
    "health/feature_std": 0.8,
    "health/rankme": 20.0,
    "health/code_entropy": 1.0,
    "train/update_share": 0.01,
    "train/grad_norm": 0.5,
    "data/wait_share": 0.05,
    "data/images_per_second": 100.0,
    "data/step_likeness": 1.1,
}


def config(**method: Any) -> Config:
    return from_tree(
        {
            "data": {"row_size": 32},
            "method": {"prototypes": 30, "freeze_prototypes": 0} | method,
            "train": TRAIN,
        }
        | {"views": {"v": {"size": 32, "count": 2, "scale": (0.2, 1)}}}
    )


def lines(until: int = 100, loss: float = 2.0, **metrics: float) -> Iterator[dict[str, Any]]:
    """A healthy record apart from `metrics`, whose names are after their slash."""
    own = {name: metrics.get(name.partition("/")[2], value) for name, value in HEALTHY.items()}
    own |= {f"health/{name}": value for name, value in metrics.items() if not any(k.endswith("/" + name) for k in HEALTHY)}
    for step in range(until):
        line = {"step": step, "loss": loss, "lr": 0.1, "time": 1e9 + step}
        logged = {"train/loss": loss, "train/lr": 0.1, "health/loss_minus_ln_k": loss - math.log(30), **own}
        yield line | (logged if step % 5 == 4 else {})


def test_a_healthy_run_starts_and_learns() -> None:
    judge = Judge(config(), 2048)
    states = []
    for line in lines():
        if judge.add(line):
            states.append(judge.health.state)
            assert judge.health.since > 1e9
    assert states == sorted(states, reverse=True)
    assert set(states) == {"starting", "learning"}
    assert judge.health.since > 1e9
    assert judge.health.step == 99


@pytest.mark.parametrize(
    ("state", "word", "metrics"),
    [
        ("stuck", "uniform predictions", {"loss": math.log(30)}),
        ("stuck", "queue_start", {"loss": math.log(30) + 0.01, "queue_drift": 50.0}),
        ("stuck", "no weight moves", {"loss": math.log(30), "update_share": 0.0}),
        ("collapsed", "nearly the same", {"feature_std": 0.01, "separation": 1.2}),
        ("diverging", "lr", {"loss": 4.0, "update_share": 0.6}),
        ("starved", "waiting", {"wait_share": 0.8}),
        ("broken", "unit length", {"embedding_norm": 3.0}),
        ("stuck", "as alike as", {"loss": math.log(30), "separation": 1.0}),
        ("broken", "data.window", {"step_likeness": 12.0}),
    ],
)
def test_what_is_wrong_is_named_with_a_remedy(state: str, word: str, metrics: dict[str, float]) -> None:
    found = verdict(config(), lines(**metrics), 2048)
    assert found.state == state
    assert word in f"{found.because} {found.do}"
    assert found.do.endswith(".")


def test_a_network_that_tells_images_apart_better_and_better_is_not_stuck() -> None:
    """The labels of SeLa and DeepCluster change with each epoch, and the loss returns to ln K."""
    judge = Judge(config(), 2048)
    for line in lines(150, loss=math.log(30) + 0.03):
        judge.add(line | ({"health/separation": 1.1 + line["step"] / 20} if "train/loss" in line else {}))
        assert judge.health.state in ("starting", "learning")


def test_codes_that_can_not_be_sharp() -> None:
    found = verdict(config(epsilon=1.0), lines(20), 2048)
    assert found.state == "stuck"
    assert "method.epsilon" in found.do


def test_too_many_prototypes_for_the_step() -> None:
    found = verdict(config(prototypes=10_000), lines(loss=9.2, code_entropy=7.0, loss_minus_ln_k=9.2 - math.log(10_000)), 2048)
    assert found.state == "stuck"
    assert "method.prototypes" in found.do


def test_patience_follows_the_learning_rate() -> None:
    """At ln K during the warm-up: not yet. A tenth of the run's learning later: dead."""
    early = [verdict(config(), lines(n, loss=math.log(30), separation=1.0), 2048).state for n in (5, 25, 60)]
    assert early[0] == "starting"
    assert early[-1] == "stuck"


def test_a_loss_that_is_not_finite() -> None:
    judge = Judge(config(), 2048)
    for line in lines(60):
        judge.add(line)
    assert judge.not_finite(60, math.nan, math.nan).state == "broken"
    assert "swav replay RUN --step 60" in judge.health.do
    for line in lines(80, update_share=0.5):
        if line["step"] >= 60:
            judge.add(line)
    assert judge.not_finite(80, math.nan, math.nan).state == "diverging"


def test_a_record_of_an_older_version() -> None:
    """Recorded before most of the measures existed."""
    record = FIXTURES / "metrics-format-1.jsonl"
    old = [json.loads(line) for line in record.read_text().splitlines()]
    assert not any("health/rankme" in line for line in old)
    settings = from_tree(json.loads((FIXTURES / "metrics-format-1.config.json").read_text()))
    assert verdict(settings, old, 1000).state == "learning"
    ln_k = math.log(12)
    flat = {"loss": ln_k, "train/loss": ln_k, "health/loss_minus_ln_k": 0.0}
    dead = [line | {key: value for key, value in flat.items() if key in line} for line in old]
    assert verdict(settings, dead, 1000).state == "stuck"
