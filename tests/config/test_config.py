"""The typed tree of settings, from files and overrides."""

from __future__ import annotations

from pathlib import Path

import pytest

from swav_platform.config import Config, ConfigError, from_tree, load


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_files_compose_and_overrides_win(tmp_path: Path) -> None:
    write(tmp_path, "base.yaml", "seed: 1\ntrain: {batch: 64, steps: 5}\n")
    child = write(tmp_path, "child.yaml", "extends: base.yaml\ntrain: {steps: 7}\n")
    config = load(child, ["train.optimiser.lr=1e-3", "views.large.size=32", "data.sources=a.tar"])
    assert (config.seed, config.train.batch, config.train.steps) == (1, 64, 7)
    assert config.train.optimiser.lr == pytest.approx(1e-3)
    assert config.views["large"].size == 32
    assert config.views["small"].size == 96, "the other group of views stays"
    assert config.data.sources == ("a.tar",)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("train.stepz=3", "train.steps"),
        ("method.epsilom=0.1", "method.epsilon"),
        ("train.steps=-1", "train.steps"),
        ("train.steps", "key=value"),
        ("seed.deeper=1", "seed"),
        ("train.batch=100", "data.row_size"),
        ("train.workers=9", "train.workers"),
        ("views.large.scale=[0.9,0.1]", "scale"),
        ("views.large.photometric.blur_sigma=[2,0]", "blur_sigma"),
        ("views.large.photometric.brightness=.nan", "brightness"),
        ("views.large.photometric.blur_sigma=[0.1,.inf]", "blur_sigma"),
        ("views={}", "two views"),
        ("method.assign_views=[-1]", "assign_views"),
        ("method.assign_views=[0,0]", "assign_views"),
        ("train.optimiser.lr=.inf", "lr"),
        ("train.epochs=.nan", "epochs"),
        ("data.streams=0", "data.streams"),
        ("run.name=a/b", "run.name: a name starts with"),
        ("run.name=../b", "run.name"),
        ("tracking.model='a:b'", "tracking.model"),
        ("method.prototypes=abc", "method.prototypes: .*whole number.*list.*got 'abc'"),
        ("method.prototypes=[100,abc]", "method.prototypes.1: .*got 'abc'"),
        ("data.sources=[{weight: 2}]", "data.sources.0.pattern: .*required"),
    ],
)
def test_wrong_settings_are_explained(override: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load(None, [override])


def test_compiling_excludes_checkpointing() -> None:
    load(None, ["train.compile=true"])
    with pytest.raises(ConfigError, match=r"train\.compile .*activation_checkpointing"):
        load(None, ["train.compile=true", "model.activation_checkpointing=true"])


def test_errors_name_where_the_setting_was_made(tmp_path: Path) -> None:
    good, bad = write(tmp_path, "good.yaml", "seed: 1\n"), write(tmp_path, "bad.yaml", "train: {batch: x}\n")
    for path, overrides, name in [
        (good, ["train.batch=x"], "The command line"),
        (good, ["views=3"], "The command line"),
        (good, ["train.batch=100"], r"\S+good.yaml with the settings of the command line"),
        (bad, [], r"\S+bad.yaml"),
        (
            write(tmp_path, "one.yaml", "method: {prototypes: 1}\n"),
            ["method.temperature=0.2"],
            r"\S+one.yaml with the settings .*line",
        ),
        (bad, ["seed=2"], r"\S+bad.yaml"),
        (bad, ["train.steps=x"], r"\S+bad.yaml with the settings of the command line"),
    ]:
        with pytest.raises(ConfigError, match=f"^{name} is not a valid configuration: "):
            load(path, overrides)


@pytest.mark.parametrize("name", ["2024-11-21", "2024-99-99", "first run_2.b", '"31"'])
def test_names_that_look_like_something_else(name: str) -> None:
    assert load(None, [f"run.name={name}"]).run.name == name.strip('"')


def test_wrong_files_are_explained(tmp_path: Path) -> None:
    for path, said in [
        (tmp_path / "none.yaml", "no configuration file"),
        (write(tmp_path, "list.yaml", "- 1\n"), "mapping"),
        (write(tmp_path, "bad.yaml", "a: [1\n"), "valid YAML"),
        (write(tmp_path, "date.yaml", "run: {name: 2024-99-99}\n"), "valid YAML"),
        (write(tmp_path, "self.yaml", "extends: self.yaml\n"), "circle"),
    ]:
        with pytest.raises(ConfigError, match=said):
            load(path)


def test_the_nearest_recipe_is_named(tmp_path: Path) -> None:
    write(tmp_path, "small.yaml", "seed: 1\n")
    with pytest.raises(ConfigError, match=r"no configuration file \S+/smal\.yaml\. Did you mean \S+/small\.yaml\?"):
        load(tmp_path / "smal.yaml")


@pytest.mark.parametrize("preset", ["cifar10_cpu", "demo", "small"])
def test_presets_are_valid(root: Path, preset: str) -> None:
    config = load(root / "configs" / "pretrain" / f"{preset}.yaml")
    assert config.method.queue_length + config.train.batch >= config.method.prototypes


def test_published_colour_changes_by_name() -> None:
    config = load(None, ["views.large.photometric=dino-global-2", "views.small.photometric=mean-shift-weak"])
    large, small = (config.views[name].photometric for name in ("large", "small"))
    assert (large.blur, large.solarise, large.hue, large.jitter) == (0.1, 0.2, 0.1, 0.8)
    assert (small.jitter, small.grey, small.blur) == (0, 0, 0)
    assert load(None, ["views.large.photometric=swav"]).digest() == Config().digest()
    with pytest.raises(ConfigError, match=r"unknown photometric preset 'dino-locl'; did you mean 'dino-local'\?"):
        load(None, ["views.large.photometric=dino-locl"])


def test_what_train_epochs_counts_does_not_move_the_epochs_of_the_plan() -> None:
    """Methods that assign a whole epoch at once need that every image had its turn."""
    config = load(None, ["data.row_size=8", "train.batch=16", "train.epochs=3", "method.queue_length=0"])
    short = load(
        None, ["data.row_size=8", "train.batch=16", "train.epochs=3", "method.queue_length=0", "data.samples_per_epoch=160"]
    )
    assert (config.steps(320), short.steps(320)) == (60, 30)
    for step in (-1, 0, 10, 19, 20, 39, 40):
        assert short.epoch(step, 320) == config.epoch(step, 320) == step // 20


def test_one_view_alone_has_no_batch_statistics() -> None:
    one = ["views.small.count=1", "data.row_size=1"]
    with pytest.raises(ConfigError, match="no variance"):
        load(None, one)
    assert load(None, [*one, "model.normalisation=step"]).data.row_size == 1
    assert load(None, ["data.row_size=1"]).data.row_size == 1, "with two views of each group there are two"


@pytest.mark.parametrize(("override", "fewest", "most"), [("3", 3, 3), ("[1, 4]", 1, 4), ("[2, 2]", 2, 2), ("auto", 1, 4)])
def test_workers_are_a_number_a_range_or_auto(override: str, fewest: int, most: int) -> None:
    config = load(None, ["data.row_size=64", f"train.workers={override}"])
    assert (config.fewest_workers, config.most_workers) == (fewest, most)
    assert config.digest() == load(None, ["data.row_size=64"]).digest()
    assert from_tree(config.model_dump(mode="json")) == config


@pytest.mark.parametrize("override", ["0", "[0, 2]", "[3, 2]", "[1, 2, 3]", "many", "1.5", "[1, 5]", "-1"])
def test_other_workers_are_refused(override: str) -> None:
    with pytest.raises(ConfigError, match=r"train\.workers"):
        load(None, ["data.row_size=64", f"train.workers={override}"])


def test_a_range_for_split_weights_needs_a_divisor_of_the_rows() -> None:
    config = load(None, ["data.row_size=64", "train.shard=fsdp2", "train.workers=[3, 4]"])
    assert [config.allows(n) for n in (3, 4)] == [False, True]
    with pytest.raises(ConfigError, match=r"\[3, 3\] does not divide the 4 rows"):
        load(None, ["data.row_size=64", "train.shard=fsdp2", "train.workers=[3, 3]"])


@pytest.mark.parametrize(("tasks", "cores", "expected"), [("2", 8, 2), ("auto", 8, 8), ("auto", 0, 1), ("4", 3, 3)])
def test_data_tasks_follow_the_cores(tasks: str, cores: int, expected: int) -> None:
    assert load(None, [f"data.tasks={tasks}"]).data.tasks_of(cores) == expected
