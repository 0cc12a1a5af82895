"""The benchmark's two arms see the same images in the same order and differ in nothing but who makes the views."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from swav_platform.config import load
from swav_platform.data.index.build import build_index
from swav_platform.data.index.sources import expand
from swav_platform.images.views import photometric
from swav_platform.rows.job import RowJob
from swav_platform.rows.produce import rows as rows_of
from swav_platform.rows.table import from_table
from tests.makers import encoded

PLAIN = [
    f"views.{group}.{setting}"
    for group in ("large", "small")
    for setting in ("scale=[1.0,1.0]", "ratio=[1.0,1.0]", "flip=0", "photometric={jitter: 0, grey: 0, blur: 0}")
]


@pytest.fixture
def bench(root: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(root / "benchmarks"))
    import training_equivalence

    return training_equivalence


@pytest.fixture(scope="module")
def index(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("index")
    build_index(expand([str(shards / "*.tar")]), folder)
    return folder


def test_the_arms_take_the_same_samples_and_chance_is_the_position_s(bench: ModuleType, index: Path, tiny: list[str]) -> None:
    config = load(bench.RECIPE, tiny)
    recipe = bench.RecipeTables(config, index)
    rows = {number: from_table(recipe[number]) for number in (3, 1)}
    ours = next(rows_of(RowJob(config, str(index)), 3, 4))
    assert np.array_equal(rows[3].sample, ours.sample)
    assert np.array_equal(rows[3].position, ours.position)
    assert [views.shape for views in rows[3].views] == [(2, 8, 16, 16, 3), (2, 8, 8, 8, 3)]
    again = from_table(bench.RecipeTables(config, index)[1])
    assert np.array_equal(again.packed, rows[1].packed)
    assert not np.array_equal(rows[3].views[0][0], rows[3].views[0][1])
    assert not np.array_equal(rows[3].views[0], ours.views[0])


def test_without_chance_the_arms_see_the_same_pixels(bench: ModuleType, index: Path, tiny: list[str]) -> None:
    config = load(bench.RECIPE, [*tiny, *PLAIN])
    ours, recipe = next(rows_of(RowJob(config, str(index)), 2, 3)), from_table(bench.RecipeTables(config, index)[2])
    for mine, theirs, parameters in zip(ours.views, bench.normalised(recipe), ours.params, strict=True):
        changed = photometric.apply(mine.copy(), parameters.copy())
        assert changed.shape == theirs.shape
        assert (changed - theirs).abs().max() < 2.5 / 255 / min(photometric.STD)


def test_what_the_recipe_s_arm_gives_the_network_is_totensor_and_normalize(
    bench: ModuleType, index: Path, tiny: list[str]
) -> None:
    row = from_table(bench.RecipeTables(load(bench.RECIPE, tiny), index)[0])
    for views, given in zip(row.views, bench.normalised(row), strict=True):
        wanted = [bench.published_recipe.to_tensor(Image.fromarray(view)) for group in views for view in group]
        assert torch.equal(given.contiguous(), torch.stack(wanted))


def test_the_groups_chances_are_the_recipe_s(bench: ModuleType, tiny: list[str]) -> None:
    """Each group's own colours and boxes, as the configuration says, not as published."""
    picture = np.random.default_rng(1).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    data = encoded(picture, "PNG")
    grey = load(bench.RECIPE, [*tiny, *PLAIN, "views.large.photometric.grey=1"])
    (view, _), small = bench.recipe_views(data, grey, 5)
    assert np.array_equal(view[..., 0], view[..., 1])
    assert not np.array_equal(small[..., 0], small[..., 1])
    exact = load(bench.RECIPE, [*tiny, *PLAIN, "views.large.scale=[0.16,0.16]"])
    (view, _), _ = bench.recipe_views(data, exact, 5)  # 16 x 16 of 40 x 40 pixels: nothing is resized
    windows = np.lib.stride_tricks.sliding_window_view(picture, (16, 16), (0, 1)).transpose(0, 1, 3, 4, 2)
    assert (windows == view).all((2, 3, 4)).any()


def lines(ours: list[float], recipe: list[float]) -> list[dict[str, Any]]:
    return [
        {"arm": arm, "seed": seed, "steps": 2, "quarantined": 0, "overrides": []}
        | dict.fromkeys(("knn_top1", "knn_top1_all", "knn_top1_random_init", "loss_end"), value)
        for arm, values in (("ours", ours), ("recipe", recipe))
        for seed, value in enumerate(values)
    ]


def test_the_verdict(bench: ModuleType) -> None:
    alike = bench.summary(lines([46.0, 47.0, 48.0], [46.5, 47.5, 47.9]))["knn_top1"]
    assert alike["within_seed_noise"]
    assert alike["difference"] == pytest.approx(-0.3)
    low, high = alike["interval_95"]
    assert low < -1.5
    assert high > 1.0
    found = bench.summary(lines([46.0, 46.5, 47.0], [49.0, 49.5, 50.0]))
    assert not found["knn_top1"]["within_seed_noise"]
    assert found["knn_top1"]["by_seed"] == [-3, -3, -3]
    assert "| knn_top1 | 46.50 ± 0.50 | 49.50 ± 0.50 | -3.00 (-4.13 to -1.87) |" in bench.table(found)


def test_unequal_runs_are_not_compared(bench: ModuleType) -> None:
    runs = lines([1.0, 2.0], [1.0, 2.0])
    with pytest.raises(SystemExit, match="at least two seeds"):
        bench.summary(runs[:3])
    runs[0]["steps"] = 1
    with pytest.raises(SystemExit, match="differ in steps"):
        bench.summary(runs)


@pytest.mark.stack
def test_a_run_of_each_arm(root: Path, shards: Path, tiny: list[str], tmp_path: Path) -> None:
    """Our arm is the product's run to the last bit; the recipe's learns from the same start."""
    for number, part in enumerate(("train", "test")):
        shutil.copy(shards / f"pictures-{number:06d}.tar", tmp_path / f"cifar10-{part}-000000.tar")
    script, overrides = root / "benchmarks" / "training_equivalence.py", [*tiny, "data.row_size=16"]
    recipe = str(root / "configs" / "pretrain" / "cifar10_cpu.yaml")

    def python(*arguments: str) -> str:
        environment = os.environ | {"PYTHONPATH": str(root)}
        command = [sys.executable, *arguments, *overrides]
        return subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout

    common = ["--out", str(tmp_path)]
    found = [json.loads(python(str(script), str(tmp_path), "--arm", arm, *common).splitlines()[-1]) for arm in ("ours", "recipe")]
    python("-m", "swav_platform.training", recipe, "--data", str(tmp_path / "cifar10-train-*.tar"), "--name", "product", *common)
    ours, theirs, product = (
        [json.loads(line)["loss"] for line in (tmp_path / run / "metrics.jsonl").read_text().splitlines()]
        for run in ("ours-31", "recipe-31", "product")
    )
    assert ours == product
    assert theirs != ours
    assert theirs[0] == pytest.approx(ours[0], abs=0.3)
    assert [run["steps"] for run in found] == [8, 8]
    assert found[0]["knn_top1_random_init"] == found[1]["knn_top1_random_init"]
