"""The record of one evaluation: what was measured, how sure it is, and how to measure it again."""

from __future__ import annotations

import os
import platform
import shlex
import statistics
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from scipy.stats import binomtest

from swav_platform.evaluation.subject import Subject
from swav_platform.evaluation.tables.published import FIGURES

_COUNTED = ("top1", "top5")  # shares of test images, so that their sampling error is binomial


def record(
    evaluation: str,
    subject: Subject,
    scores: Mapping[str, Sequence[float]],
    *,
    baseline: Mapping[str, Sequence[float]] | None = None,
    sizes: tuple[int, int],
    classes: int,
    refused: Mapping[str, int],
    options: Mapping[str, Any],
    seeds: Sequence[int],
    seconds: float,
) -> dict[str, Any]:
    """One flat object. `EVALUATION_METRIC` is the mean over seeds or draws; `spread` has the standard deviation where there are several.

    baseline: scores of the same encoder at random initialisation. `interval`: 95 % for the sampling of the test images alone.
    """
    names = {metric: f"{evaluation}_{metric}" for metric in scores}
    means = {names[metric]: round(statistics.fmean(values), 2) for metric, values in scores.items()}
    means |= {f"{evaluation}_{metric}_random_init": round(statistics.fmean(v), 2) for metric, v in (baseline or {}).items()}
    spread = {names[metric]: round(statistics.stdev(values), 2) for metric, values in scores.items() if len(values) > 1}
    intervals = {names[m]: interval(means[names[m]], sizes[1]) for m in scores if m.startswith(_COUNTED)}
    published = {name: FIGURES[name]._asdict() for name in means if name in FIGURES}
    return {
        "evaluation": evaluation,
        "model": subject.name,
        "digest": subject.digest,
        "method": subject.method,
        **means,
        "spread": spread,
        "interval": intervals,
        "train": sizes[0],
        "test": sizes[1],
        "classes": classes,
        "refused": dict(refused),
        "seeds": list(seeds),
        "options": dict(options),
        "published": published,
        "hardware": hardware(subject.device),
        "seconds": round(seconds, 1),
        "command": command(),
    }


def metrics_of(result: Mapping[str, Any]) -> dict[str, float]:
    """The figures of a record, by name."""
    prefix = f"{result['evaluation']}_"
    return {name: float(value) for name, value in result.items() if name.startswith(prefix) and isinstance(value, int | float)}


def interval(percent: float, count: int) -> list[float]:
    """Wilson's 95 % interval in percent for a share of `count` images."""
    found = binomtest(round(percent * count / 100), count).proportion_ci(method="wilson")
    return [round(100 * float(found.low), 2), round(100 * float(found.high), 2)]


def hardware(device: str) -> str:
    if device.startswith("cuda"):
        return f"{torch.cuda.get_device_name(device)}"
    model = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            model = next((line.partition(":")[2].strip() for line in file if line.startswith("model name")), model)
    except OSError:
        pass
    return f"{len(os.sched_getaffinity(0))} cores, {model}"


def command() -> str:
    """The command line of this process, to run it again."""
    program = "swav" if os.path.basename(sys.argv[0]) in ("swav", "__main__.py") else os.path.basename(sys.argv[0])
    return shlex.join([program, *sys.argv[1:]])
