"""Ways to make the same step, and what changes it on purpose."""

from __future__ import annotations

import math
from pathlib import Path
from types import ModuleType

import pytest
import torch

from swav_platform.config import ConfigError
from swav_platform.errors import UserError
from swav_platform.methods.comm import Comm
from swav_platform.methods.method import StepOutputs, Targets
from swav_platform.methods.network import MultiCropNetwork
from swav_platform.methods.swav import Swav
from swav_platform.training.checkpoints import store as checkpoints
from swav_platform.training.checkpoints.store import latest_valid, load
from swav_platform.training.optimisation.averages import split

FEW = {"train__batch": 8}  # rows of 4: convolutions in float16 are slow on CPUs


def final(folder: Path) -> checkpoints.Snapshot:
    return load(latest_valid(folder / "checkpoints"))


def same(one: checkpoints.Snapshot, two: checkpoints.Snapshot) -> bool:
    pairs = [(getattr(one, part), getattr(two, part)) for part in ("model", "optimizer", "method")]
    return all(a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a) for a, b in pairs)


@pytest.mark.parametrize(
    "change",
    [
        {"train__accumulate": "recompute"},
        {"model__activation_checkpointing": True, "train__deterministic": True},
    ],
    ids=str,
)
def test_what_only_saves_memory_changes_no_bit(rig: ModuleType, whole: Path, tmp_path: Path, change: dict) -> None:
    """Losses, weights, running statistics, momentum and queue."""
    rig.train(rig.config(**change), tmp_path)
    assert rig.losses(tmp_path) == rig.losses(whole)
    assert same(final(tmp_path), final(whole))


def test_codes_of_rows_by_themselves_would_be_noticed(
    rig: ModuleType, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The comparison above can fail: rows whose codes are shared out over themselves alone learn something else."""
    of_step = Swav.targets

    def row_by_row(method: Swav, outputs: StepOutputs, comm: Comm) -> Targets:
        return {k: v for row in outputs.rows for k, v in of_step(method, StepOutputs(outputs.step, (row,)), comm).items()}

    monkeypatch.setattr(Swav, "targets", row_by_row)
    rig.train(rig.config(train__accumulate="recompute"), tmp_path)
    assert abs(rig.losses(tmp_path)[0] - rig.losses(whole)[0]) > 1e-3


def test_compiled_encoders_learn_the_same(rig: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced and run as traced: what a compiler makes of it is torch's affair."""
    compile_it = torch.nn.Module.compile
    graphs: list[object] = []

    def traced(module: torch.nn.Module, **options: object) -> None:
        def backend(graph: torch.fx.GraphModule, inputs: object) -> object:
            graphs.append(graph)
            return graph.forward

        compile_it(module, backend=backend, **options)

    monkeypatch.setattr(torch.nn.Module, "compile", traced)
    for accumulate in ("hold", "recompute"):
        settings = rig.config(train__steps=2, train__compile=True, train__accumulate=accumulate)
        rig.train(settings, tmp_path / accumulate)
    rig.train(rig.config(train__steps=2), tmp_path / "eager")
    assert len(graphs) >= 2, "one a resolution"
    assert rig.losses(tmp_path / "hold") == rig.losses(tmp_path / "recompute") == rig.losses(tmp_path / "eager")
    assert same(final(tmp_path / "hold"), final(tmp_path / "eager"))


def test_a_step_as_one_batch(rig: ModuleType, tmp_path: Path) -> None:
    """With normalisation over the step one row of 32 and eight rows of 4 are the same step."""
    settings = {"train__steps": 3, "method__queue_length": 0}

    def pixels(first: int, last: int):
        for k in range(first, last):
            one, parts = rig.row(large, k), [rig.row(small, k * 8 + i) for i in range(8)]
            for group, views in enumerate(one.views):
                for i, part in enumerate(parts):
                    views[:, i * 4 : i * 4 + 4] = part.views[group]
            yield one

    large, small = rig.config(data__row_size=32, **settings), rig.config(model__normalisation="step", **settings)
    rig.train(large, tmp_path / "one", rows=pixels)
    rig.train(small, tmp_path / "eight")
    assert rig.losses(tmp_path / "eight") == pytest.approx(rig.losses(tmp_path / "one"), abs=1e-5)
    rig.train(rig.config(**settings), tmp_path / "rows")
    assert rig.losses(tmp_path / "rows") != pytest.approx(rig.losses(tmp_path / "one"), abs=1e-3)


def test_normalisation_over_a_step_needs_its_rows_at_once(rig: ModuleType) -> None:
    with pytest.raises(ConfigError, match=r"normalisation=step.*accumulate=recompute"):
        rig.config(model__normalisation="step", train__accumulate="recompute")


def test_fp16_goes_on_from_a_checkpoint_with_its_scale(rig: ModuleType, tmp_path: Path) -> None:
    settings = rig.config(**FEW, train__precision="fp16", train__steps=3, train__checkpoint_every=1)
    rig.train(settings, tmp_path / "whole")
    assert final(tmp_path / "whole").state["loss_scale"]["scale"] > 1
    with pytest.raises(ConnectionError):
        rig.train(settings, tmp_path / "broken", stop=2 * 2)
    rig.train(settings, tmp_path / "broken", resume=True)
    assert rig.losses(tmp_path / "broken") == rig.losses(tmp_path / "whole")
    rig.train(rig.config(**FEW, train__steps=1), tmp_path / "fp32")
    assert rig.losses(tmp_path / "whole")[0] == pytest.approx(rig.losses(tmp_path / "fp32")[0], abs=0.01)


def test_fp16_lowers_its_scale_where_gradients_overflow(rig: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from swav_platform.training import learner

    build = learner.GradScaler
    monkeypatch.setattr(learner, "GradScaler", lambda device, enabled: build(device, init_scale=2.0**40, enabled=enabled))
    rig.train(rig.config(**FEW, train__precision="fp16", train__steps=4), tmp_path)
    assert final(tmp_path).state["loss_scale"]["scale"] == 2.0**36
    assert final(tmp_path).optimizer == {}, "no weight has moved yet"
    monkeypatch.setattr(learner, "GradScaler", lambda device, enabled: build(device, init_scale=0.5, enabled=enabled))
    spoilt = rig.config(
        **FEW, train__precision="fp16", train__optimiser__lr=1e30, train__optimiser__warmup_steps=0, train__steps=3
    )
    with pytest.raises(UserError, match=r"train\.precision=fp32"):
        rig.train(spoilt, tmp_path / "sunk")


def test_averaged_weights(rig: ModuleType, tmp_path: Path) -> None:
    """They follow the rule, change nothing else, and go over a crash."""
    settings = rig.config(train__ema=0.75, train__steps=4, train__checkpoint_every=1, train__keep_checkpoints=10)
    with pytest.raises(ConnectionError):
        rig.train(settings, tmp_path, stop=2 * 8)
    rig.train(settings, tmp_path, resume=True)
    rig.train(rig.config(train__steps=4), tmp_path / "plain")
    assert rig.losses(tmp_path) == rig.losses(tmp_path / "plain")
    steps = [load(tmp_path / "checkpoints" / f"step-{n:09d}") for n in range(1, 5)]
    want = dict(steps[0].model)
    for step in steps[1:]:
        want = {name: 0.75 * a + 0.25 * step.model[name] for name, a in want.items()}
    averages, rest = split(steps[-1].optimizer)
    for name in ("encoder.layer2.0.conv1.weight", "encoder.bn1.running_var", "projection_head.3.bias"):
        assert torch.allclose(averages[name], want[name], atol=1e-6)
        assert not torch.equal(averages[name], steps[-1].model[name])
    assert rest.keys() == final(tmp_path / "plain").optimizer.keys()


def test_weights_that_nothing_moves_are_not_averaged(rig: ModuleType, tmp_path: Path) -> None:
    """Centroids of two epochs have nothing to do with each other."""
    settings = rig.config(method__name="deepcluster", data__samples_per_epoch=64, train__ema=0.9, train__steps=8)
    rig.train(settings, tmp_path)
    averages, _ = split(final(tmp_path).optimizer)
    assert torch.equal(averages["prototypes.weight"], final(tmp_path).model["prototypes.weight"])
    moved = "encoder.layer2.0.conv1.weight"
    assert not torch.equal(averages[moved], final(tmp_path).model[moved])


def test_long_gradients_are_cut(rig: ModuleType, tmp_path: Path) -> None:
    plain = rig.config(train__steps=1, train__optimiser__momentum=0, train__optimiser__weight_decay=0)
    cut = plain.model_copy(update={"train": plain.train.model_copy(update={"clip": 0.01})})
    start = rig.loop.build_learner(plain, torch.device("cpu")).network.state_dict()
    moved = []
    for name, settings in (("plain", plain), ("cut", cut)):
        rig.train(settings, tmp_path / name)
        end = final(tmp_path / name).model
        names = [n for n in start if n.endswith(("weight", "bias")) and not n.startswith("prototypes")]
        moved.append(math.sqrt(sum(float((end[n] - start[n]).square().sum()) for n in names)))
    rate = plain.train.optimiser.start_lr
    assert moved[0] > 0.1 * rate
    assert moved[1] == pytest.approx(0.01 * rate, rel=1e-2)


def test_a_run_of_so_many_images(rig: ModuleType, tmp_path: Path) -> None:
    tree = {"train__steps": None, "train__images": 100, "train__optimiser__warmup_images": 64}
    seen = []
    result = rig.train(rig.config(**tree), tmp_path, on_progress=seen.append)
    assert result.steps == 3  # whole steps of 32
    assert [p.lr for p in seen] == pytest.approx([0.001, 0.01, 0.01])


def test_collectives_are_counted_by_what_they_are_for(rig: ModuleType, tmp_path: Path) -> None:
    class Two:
        """A rank of two whose other one says nothing."""

        rank, size = 0, 1

        def __init__(self) -> None:
            self.calls = {"sum": 0}

        def sum(self, x: torch.Tensor) -> torch.Tensor:
            self.calls["sum"] += 1
            return x

        max = gather_in_order = gather_to_first = broadcast = lambda self, x: x

    seen = []
    rig.train(rig.config(train__steps=2), tmp_path, comm=Two(), on_progress=seen.append)
    assert seen[1].collectives == {
        "normalisation": 0,
        "method": 3,
        "gradients": 0,
        "health": 0,
    }  # one rank alone adds no gradients up


def test_where_nothing_moves_there_is_nothing_to_cut(rig: ModuleType, tmp_path: Path) -> None:
    """SeLa's first epoch only collects features."""
    settings = rig.config(method__name="sela", train__steps=1, train__clip=0.01)
    assert rig.train(settings, tmp_path).steps == 1


@pytest.mark.parametrize("accumulate", ["hold", "recompute"])
def test_a_step_that_moves_no_weight_goes_forward_once_and_not_back(
    rig: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, accumulate: str
) -> None:
    """Running statistics move with it all the same."""
    passes = []

    def only(self: torch.nn.Module, views: list[torch.Tensor], positions: int) -> tuple[torch.Tensor, ...]:
        passes.append(positions)
        return forward(self, views, positions)

    def back(*_: object, **__: object) -> None:
        raise AssertionError("went back")

    forward = MultiCropNetwork.forward
    monkeypatch.setattr(MultiCropNetwork, "forward", only)
    monkeypatch.setattr(torch.autograd, "backward", back)
    rig.train(rig.config(method__name="sela", train__steps=1, train__accumulate=accumulate), tmp_path)
    assert passes == [4] * 8
    model = final(tmp_path).model
    assert model["encoder.bn1.running_mean"].abs().sum() > 0
    assert model["encoder.bn1.num_batches_tracked"] == 1
    with pytest.raises(AssertionError, match="went back"):
        rig.train(rig.config(train__steps=1), tmp_path / "swav")
