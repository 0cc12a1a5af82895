"""An external method trains and resumes without changes to the loop, the step or the checkpoints."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from swav_platform.config import Config
from swav_platform.errors import UsageError
from swav_platform.methods.build import build_method
from swav_platform.methods.comm import Comm, LocalComm
from swav_platform.methods.method import PositionOrderedState, RowOutputs, StepOutputs, Targets
from swav_platform.training.checkpoints.store import load


class Centre(nn.Module):
    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.projection_head = nn.Linear(16, 4, bias=False)
        nn.init.normal_(self.projection_head.weight, generator=torch.Generator().manual_seed(0))

    def forward(self, views: list[Tensor], positions: int) -> tuple[Tensor, Tensor]:
        embeddings = torch.cat([self.projection_head(self.encoder(v)) for v in views]).unflatten(0, (-1, positions))
        return embeddings, embeddings.new_zeros(*embeddings.shape[:2], 0)


class Sixth:
    """Views attract each other and repel a running mean of the stream. Implements Method without naming it as a base."""

    def __init__(self, config: Config) -> None:
        self.views, self.epochs = config.views, 0
        self.mean: Tensor | None = None

    def modules(self, encoder: nn.Module) -> nn.Module:
        return Centre(encoder)

    def frozen(self, step: int) -> frozenset[str]:
        return frozenset({"projection_head.weight"})

    def start_epoch(self, epoch: int, comm: Comm) -> None:
        self.epochs = epoch

    def targets(self, outputs: StepOutputs, comm: Comm) -> Targets:
        mean = comm.sum(torch.stack([r.embeddings.detach().mean((0, 1)) for r in outputs.rows]).sum(0)) / 8
        self.mean = mean if self.mean is None else 0.9 * self.mean + 0.1 * mean
        return {row.row: self.mean for row in outputs.rows}

    def loss(self, outputs: RowOutputs, targets: Targets) -> Tensor:
        z = outputs.embeddings
        return (z - z.mean(0)).square().sum(-1).mean(0) - 0.1 * (z - targets[outputs.row]).square().sum(-1).mean(0).log()

    def after_step(self, outputs: StepOutputs, comm: Comm) -> None:
        pass

    def health_sums(self, outputs: StepOutputs, targets: Targets) -> Tensor:
        return torch.ones(1)

    def health(self, sums: Tensor, loss: float) -> dict[str, float]:
        return {"health/ranks": float(sums)}

    def state(self) -> PositionOrderedState:
        assert self.mean is not None
        return PositionOrderedState(
            torch.zeros(0, dtype=torch.int64), {}, {"mean": self.mean, "epochs": torch.tensor(self.epochs)}
        )

    def load_state(self, state: PositionOrderedState, comm: Comm) -> None:
        self.mean, self.epochs = state.shared["mean"], int(state.shared["epochs"])


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("methods_ranks", Path(__file__).parent / "ranks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    outside = ModuleType("outside")
    outside.Sixth = Sixth
    monkeypatch.setitem(sys.modules, "outside", outside)
    monkeypatch.setattr(module, "STEPS", 30)
    return module


def test_it_trains_and_resumes(script: ModuleType, tmp_path: Path) -> None:
    seen: list = []
    result = script.train("outside:Sixth", tmp_path, LocalComm(), on_progress=seen.append)
    run = tmp_path / "outside:Sixth"
    losses = script.losses(run)
    assert (result.steps, len(losses)) == (30, 30)
    assert sum(losses[-5:]) < sum(losses[:5])
    assert seen[0].metrics["health/ranks"] == 1
    saved = load(run / "checkpoints" / "step-000000030")
    assert int(saved.method["shared/epochs"]) == 3
    first = Centre(nn.Identity()).projection_head.weight
    assert torch.equal(saved.model["projection_head.weight"], first.double())  # frozen
    script.resume("outside:Sixth", tmp_path, LocalComm())
    assert script.losses(run) == losses


@pytest.mark.parametrize("name", ["nowhere:Method", "outside:Seventh", ":x"])
def test_a_failed_import_is_reported(script: ModuleType, name: str) -> None:
    with pytest.raises(UsageError, match=rf"method\.name={name} can't be imported"):
        build_method(script.config(name))
