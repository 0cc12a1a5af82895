"""Every recipe resolves, says where it comes from, and is free of what preflight warns of, or says so."""

from __future__ import annotations

from pathlib import Path

import pytest

from swav_platform.config import load
from swav_platform.methods.build import build_method
from swav_platform.models.encoders import check_name
from swav_platform.training.preflight import schedule, warnings

FOLDER = Path(__file__).resolve().parents[2] / "configs" / "pretrain"
RECIPES = sorted(path.stem for path in FOLDER.glob("*.yaml"))
IMAGENET = 1_281_167

PUBLISHED = {  # name: method, epochs, batch, sizes of the views, learning rate
    "swav_800ep": ("swav", 800, 4096, [(224, 2), (96, 6)], 4.8),
    "swav_400ep": ("swav", 400, 4096, [(224, 2), (96, 6)], 4.8),
    "swav_200ep": ("swav", 200, 4096, [(224, 2), (96, 6)], 4.8),
    "swav_100ep": ("swav", 100, 4096, [(224, 2), (96, 6)], 4.8),
    "swav_200ep_256": ("swav", 200, 256, [(224, 2), (96, 6)], 0.6),
    "swav_400ep_256": ("swav", 400, 256, [(224, 2), (96, 6)], 0.6),
    "swav_200ep_256_2x160_4x96": ("swav", 200, 256, [(160, 2), (96, 4)], 0.6),
    "swav_400ep_2x224": ("swav", 400, 4096, [(224, 2)], 4.8),
    "swav_400ep_2x160_4x96": ("swav", 400, 4096, [(160, 2), (96, 4)], 4.8),
    "swav_w2_400ep": ("swav", 400, 4096, [(224, 2), (96, 4)], 4.8),
    "swav_w4_400ep": ("swav", 400, 2560, [(224, 2), (96, 4)], 4.8),
    "swav_w5_400ep": ("swav", 400, 1536, [(224, 2), (96, 4)], 4.8),
    "deepcluster_v2_800ep": ("deepcluster", 801, 4096, [(224, 2), (96, 6)], 4.8),
    "deepcluster_v2_400ep_2x160_4x96": ("deepcluster", 401, 4096, [(160, 2), (96, 4)], 4.8),
    "deepcluster_v2_400ep_2x224": ("deepcluster", 401, 4096, [(224, 2)], 4.8),
    "sela_v2_400ep_2x160_4x96": ("sela", 401, 4096, [(160, 2), (96, 4)], 4.8),
    "sela_v2_400ep_2x224": ("sela", 401, 4096, [(224, 2)], 4.8),
    "mean_shift_200ep": ("mean_shift", 200, 256, [(224, 1), (224, 1)], 0.05),
    "simclr_1000ep": ("simclr", 1000, 4096, [(224, 2)], 4.8),
}


@pytest.mark.parametrize("name", RECIPES)
def test_each_starts_with_hardware_time_and_expected_accuracy(name: str) -> None:
    text = (FOLDER / f"{name}.yaml").read_text()
    head = "".join(line for line in text.splitlines(keepends=True) if line.startswith("#"))
    assert text.startswith(head), "comments come first"
    assert "Hardware: " in head
    if name in PUBLISHED:
        assert all(word in head for word in ("Time: ", "Expected: ", "Source: ", "Not reproduced yet."))


@pytest.mark.parametrize("name", RECIPES)
def test_each_resolves_without_warnings(name: str) -> None:
    config = load(FOLDER / f"{name}.yaml")
    check_name(config.model)
    build_method(config)
    assert list(warnings(config, schedule(config, IMAGENET))) == []


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_rows(name: str) -> None:
    config = load(FOLDER / f"{name}.yaml")
    views = [(group.size, group.count) for group in config.views.values()]
    found = (config.method.name, config.train.epochs, config.train.batch, views, config.train.optimiser.lr)
    assert found == PUBLISHED[name]
    assert config.rows_per_step % config.train.workers == 0
