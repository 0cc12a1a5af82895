"""The configuration digest: which settings it covers, and that it never changes for an existing configuration."""

from __future__ import annotations

from pathlib import Path

import pytest

from swav_platform.config import Config, load
from swav_platform.config.table import settings

RECIPES = {  # digests in the run.json of existing runs
    "cifar10_cpu": "2475d6b3570dddc6",
    "demo": "f579316e246dc596",
    "deepcluster_v2_800ep": "5f5596d5b53880cb",
    "mean_shift_200ep": "43c7ab55006c7d76",
    "web_one_pass": "579cef5f6ecd5593",
}
OVERRIDES = {
    "": "8ddd12909df3e2b4",
    "data.samples_per_epoch=1000": "20eb55cbdb101f1a",
    "data.one_pass=true": "cd69fc963cd979ac",
    "data.streams=2": "a88c98e8b644a13a",
    "train.optimiser.clip_rate=true": "ab9dd880999412d2",
    "data.images.formats=[png, JPG]": "ed5732fd5c0dcad0",
    "views.small.photometric=dino-local": "258dfe3eb306eeb7",
}
OTHER_VALUES = {  # of every setting outside of the digest
    "data.sources": "a.tar",
    "data.index": "ix",
    "data.exclude": "list",
    "data.members": "[jpg]",
    "data.missing": "skip",
    "data.allow_pipe": "true",
    "data.tasks": "5",
    "train.device": "cpu",
    "train.retries": "9",
    "train.hang_timeout": "60",
    "train.health": "stop",
    "train.online_knn": "folder",
    "data.segment": "7",
    "data.node_labels": "{pool: data}",
    "data.sample_log": "log",
    "data.storage_patience": "60",
    "data.missing_shards": "replace",
    "data.max_quarantine_fraction": "0.1",
    "model.activation_checkpointing": "true",
    "train.accumulate": "recompute",
    "train.shard": "fsdp2",
    "train.compile": "true",
    "train.deterministic": "true",
    "train.workers": "2",
    "train.threads": "3",
    "train.checkpoint_every": "7",
    "train.keep_checkpoints": "1",
    "train.log_every": "1",
    "tracking.uri": "x",
    "tracking.experiment": "e",
    "tracking.model": "m",
    "tracking.patience": "0",
    "tracking.log_checkpoints": "true",
    "tracking.system_metrics": "true",
    "run.name": "other",
    "run.out": "out",
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes_keep_their_digest(root: Path, recipe: str) -> None:
    assert load(root / "configs" / "pretrain" / f"{recipe}.yaml").digest() == RECIPES[recipe]


@pytest.mark.parametrize("override", OVERRIDES)
def test_overrides_keep_their_digest(override: str) -> None:
    assert load(None, [override] if override else []).digest() == OVERRIDES[override]


@pytest.mark.parametrize("key", OTHER_VALUES)
def test_settings_outside_of_the_digest(key: str) -> None:
    assert load(None, [f"{key}={OTHER_VALUES[key]}"]).digest() == Config().digest()


def test_all_settings_outside_of_the_digest_are_tested() -> None:
    outside = {each.setting for each in settings() if each.changes_results != "yes" and ".N." not in each.setting}
    assert outside == set(OTHER_VALUES)


@pytest.mark.parametrize("override", ["method.epsilon=0.03", "seed=1", "data.photometric=worker", "train.batch=512"])
def test_settings_that_change_results_change_the_digest(override: str) -> None:
    assert load(None, [override]).digest() != Config().digest()


def test_the_order_of_views_is_part_of_the_digest() -> None:
    assert Config(views=dict(reversed(Config().views.items()))).digest() != Config().digest()
