"""DeepCluster-v2, SeLa and mean shift against the published code's numbers."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from swav_platform.config import Config
from swav_platform.methods.comm import LocalComm
from swav_platform.methods.deepcluster import kmeans
from swav_platform.methods.mean_shift import MeanShift
from swav_platform.methods.memory import IGNORED, Labels, assignment_loss
from swav_platform.methods.method import RowOutputs
from swav_platform.methods.network import MomentumNetwork
from swav_platform.methods.sela import balance
from swav_platform.methods.sinkhorn import sinkhorn
from swav_platform.training.optimisation.optimisers import build_optimiser
from swav_platform.training.step import Learner, train_step
from tests.golden.arrays import arrays

DTYPES = {"f32": torch.float32, "f64": torch.float64}


def gap(a: Tensor, b: np.ndarray) -> float:
    return float(np.abs(a.detach().numpy() - b).max())


@pytest.mark.parametrize(("tag", "tolerance"), [("f32", 1e-6), ("f64", 1e-12)])
def test_deepcluster(golden: Path, tag: str, tolerance: float) -> None:
    z = arrays(golden / "deepclusterv2.npz")
    memory, index = torch.from_numpy(z["memory"]).to(DTYPES[tag]), torch.from_numpy(z["memory_index"])
    heads = [len(z[f"f64_w1/centroids/head{h}"]) for h in range(3)]
    labels, scores = torch.full((3, 250), IGNORED), []
    for head, _ in enumerate(heads):
        features = memory[head % 2]
        first = features[torch.from_numpy(z[f"initial_rows/head{head}"])]
        centroids, assigned = kmeans(features, first, weight=torch.ones(240), iterations=10, comm=LocalComm())
        labels[head, index] = assigned
        assert gap(centroids, z[f"{tag}_w1/centroids/head{head}"]) < tolerance
        scores.append(torch.from_numpy(z[f"scores/head{head}"]).to(DTYPES[tag]).view(5, 16, -1))
    assert torch.equal(labels, torch.from_numpy(z[f"{tag}_w1/assignments"]))

    joined = torch.cat(scores, -1).requires_grad_()
    own = labels[:, torch.from_numpy(z["batch_index"])]
    row = RowOutputs(0, torch.arange(16), torch.ones(16), joined[..., :0], joined)
    labelled = int((own[0] != IGNORED).sum())
    assert labelled == 14
    loss = assignment_loss(row, Labels(own, 16 / labelled), heads, 0.1).mean()
    loss.backward()
    assert abs(loss.item() - float(z[f"{tag}_w1/loss"])) < 5 * tolerance
    for head, grad in enumerate(joined.grad.split(heads, -1)):
        assert gap(grad.flatten(0, 1), z[f"{tag}_w1/grad_scores/head{head}"]) < tolerance


@pytest.mark.parametrize("power", [1, 5, 25])
def test_the_solver_of_sela(golden: Path, power: int) -> None:
    """Starts from softmax(10 scores)^power, as in the first paper."""
    z = arrays(golden / "selav2.npz")
    log_p = torch.from_numpy(z["scores"].astype(np.float64)).mul(10).log_softmax(1) * power
    log_v = balanced(log_p, iterations=1000, tolerance=0.1)
    plan = (log_p + log_v).softmax(1)
    assert torch.equal(plan.argmax(1), torch.from_numpy(z[f"sela_v1/lambda{power}/labels"]))
    if f"sela_v1/lambda{power}/plan_times_N" in z:
        assert gap(plan, z[f"sela_v1/lambda{power}/plan_times_N"]) < 1e-12


@pytest.mark.parametrize(("epsilon", "iterations"), [(0.05, 3), (0.05, 100), (0.01, 100)])
def test_sinkhorn_over_a_whole_bank(golden: Path, epsilon: float, iterations: int) -> None:
    z = arrays(golden / "selav2.npz")
    scores, key = torch.from_numpy(z["scores"].astype(np.float64)), f"swav_bank/eps{epsilon}_it{iterations}"
    log_p = scores / epsilon
    codes = (log_p + balanced(log_p, iterations, tolerance=0)).softmax(1)
    assert torch.equal(codes.argmax(1), torch.from_numpy(z[f"{key}/labels"]))
    if f"{key}/codes" in z:
        assert gap(codes, z[f"{key}/codes"]) < 1e-12
    over_the_step = sinkhorn(scores, epsilon=epsilon, iterations=iterations, comm=LocalComm())
    assert (over_the_step - codes).abs().max() < 1e-12


def balanced(log_p: Tensor, iterations: int, tolerance: float) -> Tensor:
    weight, prior = torch.ones(len(log_p), dtype=torch.float64), torch.ones(log_p.shape[1], dtype=torch.float64)
    options = {"iterations": iterations, "tolerance": tolerance, "comm": LocalComm()}
    return balance(lambda: log_p.split(100), weight=weight, prior=prior, **options)


BATCH, ROW, STEPS = 32, 16, 10


def mean_shift(z: np.lib.npyio.NpzFile, k: int, dtype: torch.dtype) -> MeanShift:
    views = {"large": {"size": 16, "count": 2, "scale": (0.1, 1)}}
    method = {"name": "mean_shift", "assign_views": (1,), "neighbours": k, "bank_length": 256}
    tree = {"data": {"row_size": ROW}, "views": views, "method": method, "train": {"batch": BATCH}}
    found = MeanShift(Config.model_validate(tree))
    convolutions = [nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU()]
    encoder = nn.Sequential(*convolutions, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    head, predictor = (nn.Sequential(nn.Linear(i, 64), nn.ReLU(), nn.Linear(64, 8)) for i in (32, 8))
    whole = nn.ModuleDict({"encoder": encoder, "fc": head, "predictor": predictor})
    whole.load_state_dict({ours(n): torch.from_numpy(z[f"initial/{n}"]) for n in NAMES})
    found.attach(MomentumNetwork(encoder, head, predictor, (1,)).to(dtype))
    found.bank.features = torch.from_numpy(z["initial/bank"]).to(dtype).view(1, 16, ROW, 8).clone()
    found.bank.weight = torch.ones(16, ROW, dtype=dtype)
    return found


PARTS = {"encoder_q.conv1": "encoder.0", "encoder_q.conv2": "encoder.2", "encoder_q.fc": "fc", "predict_q": "predictor"}
NAMES = [f"encoder_q.{part}.{kind}" for part in ("conv1", "conv2", "fc.0", "fc.2") for kind in ("weight", "bias")]
NAMES += [f"predict_q.{part}.{kind}" for part in (0, 2) for kind in ("weight", "bias")]


def ours(published: str) -> str:
    part = next(part for part in PARTS if published.startswith(part))
    return published.replace(part, PARTS[part])


@pytest.mark.parametrize("k", [5, 1])
@pytest.mark.parametrize(("tag", "tolerance"), [("f32", 1e-6), ("f64", 1e-12)])
def test_mean_shift(golden: Path, k: int, tag: str, tolerance: float) -> None:
    z, dtype = arrays(golden / "mean_shift.npz"), DTYPES[tag]
    pixels = (torch.from_numpy(arrays(golden / "swav_views.npz")["large"]).to(dtype) - 128) / 64
    method = mean_shift(z, k, dtype)
    network, options = method.network, Config.model_validate({"train": {"optimiser": {"name": "sgd", "weight_decay": 1e-4}}})
    learner = Learner(network, method, build_optimiser(network.parameters(), options.train.optimiser))
    labels, purity, slow, losses = np.full(256, -1), [], {}, []

    def prepare(row):  # type: ignore[no-untyped-def]
        step, part = divmod(row.row, BATCH // ROW)
        return [pixels[step, part * ROW : part * ROW + ROW].transpose(0, 1).flatten(0, 1)]

    search = method.targets

    def targets(outputs, comm):  # type: ignore[no-untyped-def]
        found, t = search(outputs, comm), outputs.step
        want = torch.from_numpy(z[f"k{k}/{tag}/neighbours"][t].astype(np.int64))
        labels[t * BATCH % 256 :][:BATCH] = z["labels"][t]
        bank = method.bank.features.view(256, 8)
        near = torch.cat([found[row].embeddings[0] for row in sorted(found)])
        assert torch.equal(near, bank[want]), "wrong neighbour"
        places = (near[:, :, None] == bank).all(-1).int().argmax(-1).numpy()
        purity.append((labels[places] == z["labels"][t][:, None]).mean())
        if f"k{k}/{tag}/bank" in z:
            assert gap(bank, z[f"k{k}/{tag}/bank"][t]) < tolerance
        assert gap(torch.cat([r.embeddings[0] for r in outputs.rows]), z[f"k{k}/{tag}/query"][t]) < 2 * tolerance
        momentum = torch.cat([r.momentum[0] for r in outputs.rows])
        apart = torch.cdist(momentum, torch.from_numpy(z[f"k{k}/{tag}/target"][t]), p=torch.inf)  # stored shuffled
        assert apart.min(1).values.max() < 2 * tolerance
        assert sorted(apart.argmin(1).tolist()) == list(range(BATCH))
        slow[t] = [
            p.clone() for p in network.momentum.parameters()
        ]  # as published, where they are updated at the beginning of a step
        return found

    method.targets = targets  # type: ignore[method-assign]
    for step in range(STEPS):
        rows = [SimpleNamespace(row=step * 2 + i, sample=np.arange(ROW), weight=np.ones(ROW, np.float32)) for i in (0, 1)]
        lr = float(z["lr"][step])
        done = train_step(step, rows, learner, LocalComm(), prepare, batch=BATCH, lr=lr)  # type: ignore[arg-type]
        losses.append(done.loss)

    assert np.abs(np.array(losses) - z[f"k{k}/{tag}/loss"]).max() < tolerance
    assert np.abs(np.array(purity) - z[f"k{k}/{tag}/purity"]).max() < 1e-6
    last = z[f"k{k}/{tag}/bank_final"] if f"k{k}/{tag}/bank_final" in z else z[f"k{k}/{tag}/bank"][-1]
    assert gap(method.bank.features.view(256, 8), last) < 2 * tolerance
    parts = {"encoder": network.encoder, "fc": network.projection_head, "predictor": network.predictor}
    online = dict(nn.ModuleDict(parts).named_parameters())
    encoder_names = [n for n in NAMES if n.startswith("encoder_q")]
    for name in NAMES:
        assert gap(online[ours(name)], z[f"k{k}/{tag}/final/{name}"]) < 2 * tolerance, name
    for name, p in zip(encoder_names, slow[STEPS - 1], strict=True):
        assert gap(p, z[f"k{k}/{tag}/final/{name.replace('encoder_q', 'encoder_t')}"]) < 2 * tolerance, name
    for t in (0, 1, 2) if tag == "f64" else ():
        for name, p in zip(encoder_names, slow[t], strict=True):
            assert gap(p, z[f"k{k}/f64/target_after_step_{t}/{name.removeprefix('encoder_q.')}"]) < tolerance, name
