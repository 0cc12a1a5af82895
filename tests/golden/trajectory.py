"""Runs the published SwAV trajectories: `python trajectory.py RANK SIZE STORE FOLDER GOLDEN`, one process per rank.

Rank 0 writes FOLDER/out.npz: for each `<plain|queue>/<f32|f64>` the losses, codes, final weights, momentum and queue.
With several ranks, `local/*` holds the same with Sinkhorn on each rank's own samples.
"""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor, nn

from swav_platform.config import Config
from swav_platform.methods.comm import Comm, LocalComm
from swav_platform.methods.network import MultiCropNetwork
from swav_platform.methods.swav import Swav
from swav_platform.training.checkpoints.snapshots import gather_state
from swav_platform.training.collectives import joined
from swav_platform.training.health.vitals import Vitals
from swav_platform.training.optimisation.optimisers import build_optimiser
from swav_platform.training.optimisation.schedules import learning_rate
from swav_platform.training.step import Learner, train_step

STEPS, BATCH, ROW = 30, 32, 16


def config(kind: str) -> Config:
    return Config.model_validate(
        {
            "data": {"row_size": ROW},
            "views": {"large": {"size": 16, "count": 2, "scale": (0.1, 1)}, "small": {"size": 8, "count": 3, "scale": (0.1, 1)}},
            "model": {"projection_dim": 16},
            "method": {
                "prototypes": 30,
                "queue_length": {"plain": 0, "queue": 64}[kind],
                "queue_start": 10,
                "freeze_prototypes": {"plain": 5, "queue": 13}[kind],
            },
            "train": {"batch": BATCH, "steps": STEPS, "optimiser": {"warmup_steps": 10}},
        }
    )


def network(initial: dict[str, Tensor], dtype: torch.dtype) -> MultiCropNetwork:
    trunk = nn.Sequential(
        nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    head = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 16))
    whole = MultiCropNetwork(trunk, head, nn.Linear(16, 30, bias=False))
    whole.load_state_dict({name.replace("trunk", "encoder"): t for name, t in initial.items()})
    return whole.to(dtype)


def run(golden: Path, kind: str, dtype: torch.dtype, comm: Comm, local: bool = False) -> dict[str, np.ndarray]:
    z, views = np.load(golden / f"swav_{kind}.npz"), np.load(golden / "swav_views.npz")
    options, method = config(kind), Swav(config(kind))
    names = [str(n) for n in z["parameter_names"]]
    net = method.attach(network({n: torch.from_numpy(z[f"initial/{n}"]) for n in names}, dtype))
    learner = Learner(net, method, build_optimiser(net.parameters(), options.train.optimiser))
    codes, losses, counts, vitals = [], [], [], Vitals(options)
    published_targets = method.targets

    def targets(outputs, everyone):  # type: ignore[no-untyped-def]
        before = sum(getattr(everyone, "calls", {}).values())
        found = published_targets(outputs, LocalComm() if local else everyone)
        counts.append(sum(getattr(everyone, "calls", {}).values()) - before)
        codes.append(torch.cat([found[k] for k in sorted(found)], dim=1))
        return found

    method.targets = targets  # type: ignore[method-assign]

    def prepare(row):  # type: ignore[no-untyped-def]
        step, part = divmod(row.row, BATCH // ROW)
        own = [views[g][step, part * ROW : part * ROW + ROW] for g in ("large", "small")]
        return [((torch.from_numpy(v).to(dtype) - 128) / 64).transpose(0, 1).flatten(0, 1) for v in own]

    for step in range(STEPS):
        numbers = range(step * 2 + comm.rank, step * 2 + 2, comm.size)
        rows = [SimpleNamespace(row=k, sample=np.arange(ROW), weight=np.ones(ROW, np.float32)) for k in numbers]
        lr = learning_rate(step, STEPS, options.train.optimiser)
        done = train_step(step, rows, learner, comm, prepare, batch=BATCH, lr=lr, vitals=vitals if step % 7 == 0 else None)  # type: ignore[arg-type]
        losses.append(done.loss)
    state = gather_state(method.state(), comm)
    result = {"losses": np.array(losses), "method_collectives": np.array(counts)}
    result["codes"] = torch.stack([comm.gather_in_order(c.transpose(0, 1).contiguous()).transpose(0, 1) for c in codes]).numpy()
    result["queue"] = state.tensors["features"].transpose(0, 1).flatten(1, 2).numpy()
    for name, p in net.named_parameters():
        published = name.replace("encoder", "trunk")
        result[f"final/{published}"] = p.detach().numpy()
        result[f"momentum/{published}"] = learner.optimiser.state[p]["momentum_buffer"].numpy()
    return result


def main(rank: int, size: int, store: Path, folder: Path, golden: Path) -> None:
    torch.set_num_threads(1)
    found: dict[str, np.ndarray] = {}
    with joined(rank, size, f"file://{store}") if size > 1 else nullcontext(LocalComm()) as comm:
        for kind in ("plain", "queue"):
            for tag, dtype in (("f32", torch.float32), ("f64", torch.float64)):
                found |= {f"{kind}/{tag}/{k}": v for k, v in run(golden, kind, dtype, comm).items()}
        if size > 1:
            found |= {f"local/{k}": v for k, v in run(golden, "plain", torch.float64, comm, local=True).items()}
    if rank == 0:
        np.savez(folder / "out.npz", **found)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4]), Path(sys.argv[5]))
