"""Methods on one table: runs of a method are its repetitions, with confidence intervals."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from scipy.stats import t as student

from swav_platform.evaluation.tables.markdown import grid
from swav_platform.evaluation.tables.record import metrics_of

Results = Mapping[str, Mapping[str, Any]]
"""Records of one run, by evaluation."""


def comparison(runs: Mapping[str, Results], budgets: Mapping[str, str]) -> dict[str, Any]:
    """Figures of each method. runs: records by run. budgets: images that each run learned from, and what else makes it comparable.

    `methods`: method -> metric -> mean, low, high, runs. The interval is 95 %: Student's over runs of the method where there are
    several; else that of the sampling of test images. `unequal`: differences between runs that make the table unfair.
    """
    by_method: dict[str, list[Results]] = {}
    for results in runs.values():
        method = str(next(iter(results.values()))["method"])
        by_method.setdefault(method, []).append(results)
    methods = {method: _figures(found) for method, found in by_method.items()}
    return {"methods": methods, "runs": list(runs), "unequal": _unequal(runs, budgets)}


def comparison_table(found: Mapping[str, Any]) -> str:
    """One row per method, one column per metric that all methods have."""
    methods: dict[str, dict[str, dict[str, Any]]] = found["methods"]
    shared = [name for name in next(iter(methods.values())) if all(name in figures for figures in methods.values())]
    rows = [
        [method, str(max(figure["runs"] for figure in figures.values())), *(_cell(figures[name]) for name in shared)]
        for method, figures in methods.items()
    ]
    return grid(["method", "runs", *shared], rows)


def _figures(found: Sequence[Results]) -> dict[str, dict[str, Any]]:
    values: dict[str, list[float]] = {}
    sampling: dict[str, list[float]] = {}
    for results in found:
        for result in results.values():
            for name, value in metrics_of(result).items():
                if not name.endswith("_random_init"):
                    values.setdefault(name, []).append(value)
            sampling |= result["interval"]
    return {name: _figure(each, sampling.get(name)) for name, each in values.items()}


def _figure(values: Sequence[float], sampling: Sequence[float] | None) -> dict[str, Any]:
    mean = statistics.fmean(values)
    low, high = sampling or (None, None)
    if len(values) > 1:
        half = float(student.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))
        low, high = round(mean - half, 2), round(mean + half, 2)
    return {"mean": round(mean, 2), "low": low, "high": high, "runs": len(values)}


def _cell(figure: Mapping[str, Any]) -> str:
    return f"{figure['mean']:g}" + ("" if figure["low"] is None else f" ({figure['low']:g} to {figure['high']:g})")


def _unequal(runs: Mapping[str, Results], budgets: Mapping[str, str]) -> list[str]:
    found = []
    if len(set(budgets.values())) > 1:
        found.append("budget: " + "; ".join(f"{run} {budget}" for run, budget in budgets.items()))
    for what in ("test", "train", "classes"):
        sizes = {run: sorted({(name, result[what]) for name, result in results.items()}) for run, results in runs.items()}
        common = set.intersection(*({name for name, _ in each} for each in sizes.values()))
        seen = {tuple((name, size) for name, size in each if name in common) for each in sizes.values()}
        if len(seen) > 1:
            found.append(f"{what}: " + "; ".join(f"{run} {dict(each)}" for run, each in sizes.items()))
    return found
