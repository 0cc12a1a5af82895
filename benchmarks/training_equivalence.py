"""Compares training on the platform's views with training on the published recipe's views (CIFAR-10, cifar10_cpu.yaml).

    python benchmarks/training_equivalence.py DIR_OF_SHARDS --arm ours|recipe --seed 31 [--steps N] [--out DIR]
                                              [--curve FILE.svg] [key=value ...]
    python benchmarks/training_equivalence.py --summary FILE...

DIR_OF_SHARDS holds cifar10-train-*.tar and cifar10-test-*.tar with keys `<class>/<id>`. An arm is one run in this process,
without Ray, and its kNN accuracy. It prints one JSON line, and --curve writes its loss curve. The arms of a seed share the
initial weights, the plan, the schedule and the images of the evaluation. They differ in how bytes become views:

ours     the platform's rows, with photometric changes in the trainer
recipe   published_recipe.py with Pillow, view after view, with the ranges of the configuration's view groups.
         Random numbers are those of torch and NumPy, seeded by (seed, position).

--summary reads files of such lines and prints a table and one JSON line: mean and standard deviation over the seeds of each
arm, and the difference with its 95 % interval by Welch's t-test. A difference is within seed noise if the interval contains 0.
Half the interval's width is the difference that this number of seeds could miss.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import published_recipe
import pyarrow as pa
import torch
from PIL import Image
from scipy.stats import ttest_ind
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from swav_platform.config import Config, ViewGroup, load
from swav_platform.data.datasets import open_or_build
from swav_platform.data.samples import ReadFailure, read_samples
from swav_platform.evaluation.knn import evaluate_knn
from swav_platform.evaluation.report import curve
from swav_platform.images.views import photometric
from swav_platform.methods.comm import LocalComm
from swav_platform.rows.job import RowJob, open_index
from swav_platform.rows.layout import Row
from swav_platform.rows.produce import rows as rows_of
from swav_platform.rows.table import from_table, to_table
from swav_platform.runs.folder import RunFolder
from swav_platform.training.checkpoints.export import export_package
from swav_platform.training.local_rows import local_rows
from swav_platform.training.loop import TrainResult, train

RECIPE = Path(__file__).resolve().parents[1] / "configs" / "pretrain" / "cifar10_cpu.yaml"
ARMS = ("ours", "recipe")
COMPARED = ("knn_top1", "knn_top1_all", "loss_end")


class RecipeTables(Dataset[pa.Table]):
    """Rows as `rows_of` makes them, with the recipe's views, photometric changes included, as uint8 (before ToTensor)."""

    def __init__(self, config: Config, index: Path) -> None:
        self.config, self.job = config, RowJob(config, str(index))

    def __getitem__(self, number: int) -> pa.Table:
        row = next(rows_of(self.job, number, number + 1))
        packed = row.packed.copy()
        views = row.layout.views(packed)
        lines = open_index(self.job.index).lines(sorted(set(row.sample.tolist())))
        contents = read_samples(lines)
        for slot in row.weight.nonzero()[0]:
            data = contents[int(row.sample[slot])]
            assert not isinstance(data, ReadFailure)
            for group, made in zip(views, recipe_views(data, self.config, int(row.position[slot])), strict=True):
                group[:, slot] = made
        return to_table(dataclasses.replace(row, packed=packed, views=views, params=row.layout.params(packed)))


def recipe_views(data: bytes, config: Config, position: int) -> list[np.ndarray]:
    """The recipe's views of the image at a position, uint8 [V, H, W, 3] per group. Seeds torch's and NumPy's generators."""
    first, second = np.random.SeedSequence((config.seed, position)).generate_state(2)
    torch.manual_seed(int(first))
    np.random.seed(int(second))
    image = published_recipe.load(data)
    return [np.stack([_view(image, group) for _ in range(group.count)]) for group in config.views.values()]


def _view(image: Image.Image, group: ViewGroup) -> np.ndarray:
    colours = group.photometric
    assert group.interpolation == "bilinear", "the recipe supports bilinear crops only"
    assert colours.solarise == 0, "the recipe does not support solarisation"
    chances = published_recipe.Chances(
        jitter=colours.jitter,
        strengths=(colours.brightness, colours.contrast, colours.saturation, colours.hue),
        grey=colours.grey,
        blur=colours.blur,
        sigma=colours.blur_sigma,
    )
    view = published_recipe.crop(image, group.size, group.scale, group.ratio, group.flip)
    return np.asarray(published_recipe.colours(view, chances))


def recipe_rows(config: Config, index: Path) -> Callable[[int, int], Iterator[Row]]:
    """The argument `rows` of the training loop, like local_rows."""

    def rows(first: int, last: int) -> Iterator[Row]:
        numbers: Any = range(first, last)
        tables = DataLoader(
            RecipeTables(config, index),
            batch_size=None,
            sampler=numbers,
            num_workers=config.data.tasks_of(2),
            prefetch_factor=2,
            multiprocessing_context="forkserver",
        )
        return map(from_table, tables)

    return rows


def normalised(row: Row) -> list[Tensor]:
    """The row's views after ToTensor and Normalize."""
    return [photometric.normalise(views.copy()) for views in row.views]


def pretrain(config: Config, arm: str, folder: RunFolder) -> TrainResult:
    """Trains one run in this process, from shards to a model package."""
    index = open_or_build(config.data, folder.index)
    folder.write(config, index=index.path, index_digest=index.digest, samples=index.samples)
    comm = LocalComm()
    result = train(
        config,
        samples=index.samples,
        index_digest=index.digest,
        rows=recipe_rows(config, index.path) if arm == "recipe" else local_rows(RowJob(config, str(index.path)), comm),
        comm=comm,
        run_dir=folder.path,
        resume=False,
        prepare=normalised if arm == "recipe" else None,
    )
    export_package(folder, result.checkpoint)
    return result


def score(folder: RunFolder, shards: Path, sizes: dict[str, int]) -> dict[str, Any]:
    train_split, test_split = (str(shards / f"cifar10-{part}-*.tar") for part in ("train", "test"))
    return evaluate_knn(folder, train_split, test_split, label="folder", **sizes)  # type: ignore[arg-type]


def run_arm(shards: Path, arm: str, out: Path, overrides: Sequence[str]) -> dict[str, Any]:
    config = load(RECIPE, [*overrides, f"data.sources={json.dumps([str(shards / 'cifar10-train-*.tar')])}"])
    folder = RunFolder(out / f"{arm}-{config.seed}")
    began = time.perf_counter()
    result = pretrain(config, arm, folder)
    losses = folder.losses()
    end = losses[-max(1, len(losses) // 20) :]
    scored = score(folder, shards, {"bank_size": 10_000, "query_size": 2_000})
    everything = score(folder, shards, {})
    return {
        "arm": arm,
        "seed": config.seed,
        "steps": result.steps,
        "knn_top1": scored["knn_top1"],
        "knn_top1_random_init": scored["knn_top1_random_init"],
        "knn_top1_all": everything["knn_top1"],  # whole splits
        "loss_first": round(result.loss_first, 4),
        "loss_end": round(statistics.mean(end), 4),  # mean over the last 5 % of the steps
        "quarantined": result.quarantined,
        "train_seconds": round(result.seconds, 1),
        "seconds": round(time.perf_counter() - began, 1),
        "recipe": config.model_copy(update={"seed": 0}).digest(),
        "rows_a_step": config.rows_per_step,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "pillow": PIL.__version__,
        "overrides": [word for word in overrides if not word.startswith("seed=")],
    }


def summary(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Each figure of both arms, and the difference (ours - recipe). The runs must have equal settings and the same seeds."""
    arms = [sorted((run for run in runs if run["arm"] == arm), key=lambda run: int(run["seed"])) for arm in ARMS]
    seeds = [[run["seed"] for run in arm] for arm in arms]
    if seeds[0] != seeds[1] or len(set(seeds[0])) != len(seeds[0]) or len(seeds[0]) < 2:
        raise SystemExit(
            f"Each arm must have one run for each of at least two seeds; ours has {seeds[0]}, recipe has {seeds[1]}."
        )
    if len({(run["steps"], run["quarantined"], run.get("recipe"), *run["overrides"]) for run in runs}) > 1:
        raise SystemExit("The runs differ in steps, recipe, overrides or refused images. Compare runs with equal settings.")
    random_init = round(statistics.mean(run["knn_top1_random_init"] for run in arms[0]), 2)
    return {"seeds": seeds[0], "steps": runs[0]["steps"], "knn_top1_random_init": random_init} | {
        name: compare([run[name] for run in arms[0]], [run[name] for run in arms[1]]) for name in COMPARED
    }


def compare(ours: Sequence[float], recipe: Sequence[float]) -> dict[str, Any]:
    test = ttest_ind(ours, recipe, equal_var=False)
    low, high = test.confidence_interval(0.95)
    by_seed = [round(a - b, 4) for a, b in zip(ours, recipe, strict=True)]
    return {
        "ours": {"mean": round(statistics.mean(ours), 4), "sd": round(statistics.stdev(ours), 4)},
        "recipe": {"mean": round(statistics.mean(recipe), 4), "sd": round(statistics.stdev(recipe), 4)},
        "difference": round(statistics.mean(ours) - statistics.mean(recipe), 4),
        "by_seed": by_seed,
        "interval_95": [round(float(low), 4), round(float(high), 4)],
        "p": round(float(test.pvalue), 3),
        "within_seed_noise": bool(low <= 0 <= high),
    }


def table(found: dict[str, Any]) -> str:
    lines = [
        f"{len(found['seeds'])} seeds each ({', '.join(map(str, found['seeds']))}), {found['steps']:,} steps; "
        f"kNN of random initialisation {found['knn_top1_random_init']}",
        "",
        "| | ours | recipe | difference (95 % interval) | by seed | within seed noise |",
        "|---|---|---|---|---|---|",
    ]
    for name in COMPARED:
        it = found[name]
        sides = " | ".join(f"{it[arm]['mean']:.2f} ± {it[arm]['sd']:.2f}" for arm in ARMS)
        low, high = it["interval_95"]
        pairs = ", ".join(f"{difference:+.2f}" for difference in it["by_seed"])
        answer = "yes" if it["within_seed_noise"] else "no"
        lines.append(f"| {name} | {sides} | {it['difference']:+.2f} ({low:+.2f} to {high:+.2f}) | {pairs} | {answer} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", type=Path, nargs="?")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--arm", choices=ARMS)
    parser.add_argument("--seed", type=int, default=31)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--out", type=Path, help="Keep the folders of the runs here.")
    parser.add_argument("--curve", type=Path, metavar="FILE.svg")
    parser.add_argument("--summary", type=Path, nargs="+", metavar="FILE")
    options = parser.parse_intermixed_args()
    if options.summary:
        found = summary(
            [json.loads(line) for file in options.summary for line in file.read_text().splitlines() if line.startswith("{")]
        )
        print(table(found))
        print(json.dumps(found))
        return
    if options.shards is None or options.arm is None:
        parser.error("DIR_OF_SHARDS and --arm, or --summary FILE..., are required")
    overrides = [f"seed={options.seed}", *([f"train.steps={options.steps}"] if options.steps else []), *options.overrides]
    with tempfile.TemporaryDirectory() as scratch:
        out = options.out or Path(scratch)
        print(json.dumps(run_arm(options.shards, options.arm, out, overrides)))
        if options.curve:
            folder = RunFolder(out / f"{options.arm}-{options.seed}")
            config = folder.config()
            has_prototypes = config.method.name not in ("simclr", "mean_shift")
            options.curve.write_text(curve(folder.losses(), math.log(config.method.heads[0]) if has_prototypes else None))


if __name__ == "__main__":
    main()
