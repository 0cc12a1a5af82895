"""Measures a training step of the platform against a plain loop of the published structure, on the same inputs.

    python benchmarks/train_step.py                  ResNet-50, 2x96 + 2x48 px, batch 16, float32
    python benchmarks/train_step.py --device cuda    ResNet-50, 2x224 + 6x96 px, K 3000, batch 256, bfloat16

One process measures both alternately and takes medians. On a CPU, two gloo processes then measure the share of the method's
collectives. Prints one JSON line. A ratio above 1 means that the platform is faster.

compiled_vs_plain_loop, eager_vs_plain_loop    Plain loop / platform, with and without torch.compile, both channels_last.
vs_plain_loop         The larger of the two.
channels_last_gain    Plain loop in NCHW / in channels_last.
convolution_share     Convolutions in the plain step's CPU time. Other optimisations can gain at most the rest.
codes_and_loss_share  Sinkhorn, loss and its gradient in the platform's step.
collective_share      The method's collectives in a step of two ranks, including the wait for the other rank.

With --ranks 2, it measures the sum of gradients alone, over two gloo processes. Shares are of a step: time in which gradients travel
after both ranks have finished their backward passes.

exposed_communication_share  in buckets, while backward runs
before                       in one block, after backward
step_gain                    time of a step with one block / with buckets

--pairs is the number of measurements of each. --busy uses one thread and CPU time instead of wall time, for shared machines.
On a GPU, the result also has memory_ratio (platform / plain), share_of_peak, and time and memory of three kinds of multi-crop.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from plain_loop import PlainLoop
from torch import Tensor

from swav_platform.config import Config, load
from swav_platform.methods.comm import Comm, LocalComm
from swav_platform.methods.sinkhorn import sinkhorn
from swav_platform.methods.swav import swapped_loss
from swav_platform.training import reduction
from swav_platform.training.collectives import joined
from swav_platform.training.learner import build_learner
from swav_platform.training.step import train_step

PEAK = 989e12  # dense bfloat16 FLOP/s of an H100 or H200
RESNET50 = 3 * 8.2e9  # FLOP of forward and backward at 224 px
CROPS = {"2x224": [(224, 2)], "2x160+4x96": [(160, 2), (96, 4)], "2x224+6x96": [(224, 2), (96, 6)]}


@dataclass(frozen=True)
class Setting:
    """The training step that is measured."""

    crops: Sequence[tuple[int, int]]  # size, count
    batch: int
    precision: str
    pairs: int
    model: str = "resnet50"
    prototypes: int = 3000

    def config(self, *overrides: str) -> Config:
        views = {f"v{size}": {"size": size, "count": count, "scale": [0.1, 1.0]} for size, count in self.crops}
        options = [
            *(f"views={json.dumps(views)}", f"train.batch={self.batch}", f"data.row_size={self.batch}"),
            *(f"model.name={self.model}", f"method.prototypes={self.prototypes}", "method.freeze_prototypes=0"),
            *(f"train.precision={self.precision}", "train.steps=1000", "train.optimiser.lr=0.1"),
        ]
        return load(None, [*options, *overrides])


SETTINGS = {
    "cpu": Setting([(96, 2), (48, 2)], 16, "fp32", pairs=7),
    "cuda": Setting(CROPS["2x224+6x96"], 256, "bf16", pairs=15),
    "toy": Setting([(32, 2), (16, 2)], 4, "fp32", pairs=2, model="resnet18", prototypes=30),
}


def inputs(config: Config, device: torch.device, layout: torch.memory_format) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    sizes = [(g.count * config.train.batch, 3, g.size, g.size) for g in config.views.values()]
    return [torch.randn(size, generator=generator).to(device).contiguous(memory_format=layout) for size in sizes]


class Row:
    """The only row of a rank's step."""

    def __init__(self, number: int, size: int) -> None:
        self.row, self.weight, self.sample = number, np.ones(size, np.float32), np.arange(size)


def our_step(config: Config, device: torch.device, comm: Comm, views: list[Tensor]) -> Callable[[], object]:
    learner = build_learner(config, device)
    size, steps = config.data.row_size, iter(range(10**9))

    def step() -> object:
        number = next(steps)
        rows: list[Any] = [Row(number * comm.size + comm.rank, size)]
        how = {"batch": config.train.batch, "lr": 0.1, "precision": config.train.precision}
        return train_step(number, rows, learner, comm, lambda row: views, **how)  # type: ignore[arg-type]

    return step


clock = time.perf_counter


def seconds(step: Callable[[], object], device: torch.device) -> float:
    _wait(device)
    began = clock()
    step()
    _wait(device)
    return clock() - began


def convolution_share(step: Callable[[], object]) -> float:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        step()
    spent = {event.key: event.self_cpu_time_total for event in profile.key_averages()}
    return float(sum(time for name, time in spent.items() if "convolution" in name) / sum(spent.values()))


def in_turns(steps: dict[str, Callable[[], object]], device: torch.device, pairs: int) -> dict[str, float]:
    """Median seconds of each, measured alternately after two warm-up steps."""
    for step in steps.values():
        step(), step()
    found: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(pairs):
        for name, step in steps.items():
            found[name].append(seconds(step, device))
    return {name: statistics.median(times) for name, times in found.items()}


def codes_and_loss(config: Config, device: torch.device, pairs: int) -> float:
    """Median seconds of Sinkhorn, the loss and its gradient for the scores of one step."""
    count, batch = sum(g.count for g in config.views.values()), config.train.batch
    scores = torch.rand(count, batch, config.method.heads[0], device=device).requires_grad_()

    def once() -> None:
        assign = config.method.assign_views
        codes = sinkhorn(scores.detach()[list(assign)], epsilon=0.05, iterations=3, comm=LocalComm())
        swapped_loss(scores, codes, assign, 0.1).mean().backward()

    return in_turns({"": once}, device, pairs)[""]


def compare(setting: Setting, device: torch.device) -> dict[str, Any]:
    last, first = torch.channels_last, torch.contiguous_format
    config, views = setting.config(), inputs(setting.config(), device, last)
    steps: dict[str, Callable[[], object]] = {}
    for name, options in (("ours", ["train.compile=true"]), ("eager", ["train.compile=false"])):
        steps[name] = our_step(setting.config(*options), device, LocalComm(), views)
    plain, plain_nchw = PlainLoop(config, device, last), PlainLoop(config, device, first)
    steps["plain"] = lambda: plain.step(views)
    nchw = inputs(config, device, first)
    steps["nchw"] = lambda: plain_nchw.step(nchw)
    median = in_turns(steps, device, setting.pairs)
    best = min(("ours", "eager"), key=median.__getitem__)
    on_cpu = {} if device.type == "cuda" else {"convolution_share": round(convolution_share(steps["plain"]), 3)}
    return {
        "vs_plain_loop": round(median["plain"] / median[best], 3),
        "compiled": best == "ours",
        "compiled_vs_plain_loop": round(median["plain"] / median["ours"], 3),
        "eager_vs_plain_loop": round(median["plain"] / median["eager"], 3),
        "channels_last_gain": round(median["nchw"] / median["plain"], 3),
        "codes_and_loss_share": round(codes_and_loss(config, device, setting.pairs) / median[best], 4),
        "images_per_second": round(setting.batch / median[best], 2),
        "seconds": {name: round(value, 4) for name, value in median.items()},
        **on_cpu,
    }


def on_gpu(setting: Setting, device: torch.device) -> dict[str, Any]:
    """Memory, share of peak FLOP/s and the paper's multi-crop comparison. Each runs alone, for its own memory peak."""

    def ours(crops: Sequence[tuple[int, int]]) -> Callable[[], object]:
        config = replace(setting, crops=crops).config("train.compile=true")
        return our_step(config, device, LocalComm(), inputs(config, device, torch.channels_last))

    def plain() -> Callable[[], object]:
        loop = PlainLoop(setting.config(), device, torch.channels_last)
        views = inputs(setting.config(), device, torch.channels_last)
        return lambda: loop.step(views)

    found = {name: _alone(partial(ours, crops), device, setting) for name, crops in CROPS.items()}
    reference, whole = _alone(plain, device, setting), found["2x224+6x96"]
    flops = RESNET50 * sum(count * (size / 224) ** 2 for size, count in setting.crops)
    return {
        "memory_ratio": round(whole["gib"] / reference["gib"], 3),
        "share_of_peak": round(whole["images_per_second"] * flops / PEAK, 4),
        "crops": found,
        "plain": reference,
    }


def _alone(make: Callable[[], Callable[[], object]], device: torch.device, setting: Setting) -> dict[str, float]:
    gc.collect()  # compiled networks are in reference cycles
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    step = make()
    step(), step()
    torch.cuda.reset_peak_memory_stats()
    median = statistics.median(seconds(step, device) for _ in range(setting.pairs))
    gib = (torch.cuda.max_memory_allocated() - before) / 2**30
    return {"images_per_second": round(setting.batch / median, 1), "gib": round(gib, 2)}


def two_ranks(name: str, *options: str) -> dict[str, float]:
    """What rank 0 of two gloo processes with one thread each prints."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, *options, "--setting", name, "--store", f"{folder}/store", "--rank"]
        ranks = [subprocess.Popen([*command, str(r)], stdout=subprocess.PIPE, text=True) for r in range(2)]
        outputs = [rank.communicate()[0] for rank in ranks]
    assert all(rank.returncode == 0 for rank in ranks)
    return dict(json.loads(outputs[0].splitlines()[-1]))


def overlap(setting: Setting, rank: int, store: str) -> dict[str, float]:
    """Shares of the exposed sum of gradients, in buckets and in one block, measured alternately."""
    torch.set_num_threads(1)
    device, exposed = torch.device("cpu"), [0.0]
    finish = reduction.GradientSum.finish

    def timed(self: reduction.GradientSum, rest: Sequence[Tensor]) -> None:
        torch.distributed.barrier()  # the other rank's backward pass is not communication
        began = clock()
        finish(self, rest)
        exposed[0] += clock() - began

    reduction.GradientSum.finish = timed  # type: ignore[method-assign]
    last = {"buckets": reduction.LAST_BYTES, "block": 2**40}
    spent, outside = dict.fromkeys(last, 0.0), dict.fromkeys(last, 0.0)
    with joined(rank, 2, f"file://{store}") as comm:
        half = replace(setting, batch=setting.batch // 2)
        step = our_step(half.config("train.compile=false"), device, comm, inputs(half.config(), device, torch.channels_last))
        step()
        for _ in range(setting.pairs):
            for way, size in last.items():
                reduction.LAST_BYTES, exposed[0] = size, 0.0
                spent[way] += seconds(step, device)
                outside[way] += exposed[0]
    share = {way: round(outside[way] / spent[way], 4) for way in last}
    gain = round(spent["block"] / spent["buckets"], 3)
    return {"exposed_communication_share": share["buckets"], "before": share["block"], "step_gain": gain}


def one_rank(setting: Setting, rank: int, store: str) -> dict[str, float]:
    torch.set_num_threads(1)
    device = torch.device("cpu")
    with joined(rank, 2, f"file://{store}") as comm:
        # half the images per rank, so that the whole step is the one measured above
        half = replace(setting, batch=setting.batch // 2)
        inside, collectives = [0.0], [0.0]
        from swav_platform.methods.swav import Swav

        targets = Swav.targets

        def timed(self: Swav, outputs: Any, ranks: Any) -> Any:
            before = ranks.seconds
            comm.sum(torch.zeros(1))  # wait here for the other rank's forward pass
            inside[0] += ranks.seconds - before
            began = ranks.seconds
            found = targets(self, outputs, ranks)
            collectives[0] += ranks.seconds - began
            return found

        Swav.targets = timed  # type: ignore[method-assign, assignment]
        step = our_step(half.config(), device, comm, inputs(half.config(), device, torch.channels_last))
        step()
        inside[0] = collectives[0] = 0.0
        spent = sum(seconds(step, device) for _ in range(setting.pairs))
    share = {"collective_share": (collectives[0] + inside[0]) / spent, "collective_share_without_waiting": collectives[0] / spent}
    return {name: round(value, 5) for name, value in share.items()}


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--setting", choices=list(SETTINGS), help="toy takes seconds and is for tests (default: as --device)")
    parser.add_argument("--busy", action="store_true")
    parser.add_argument("--pairs", type=int)
    parser.add_argument("--ranks", type=int, choices=[1, 2], default=1)
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--store", help=argparse.SUPPRESS)
    options = parser.parse_args()
    name = options.setting or options.device
    setting, device = SETTINGS[name], torch.device(options.device)
    if options.pairs:
        setting = replace(setting, pairs=options.pairs)
    if options.rank is not None:
        measure = overlap if options.ranks == 2 else one_rank
        print(json.dumps(measure(setting, options.rank, options.store)))
        return
    if options.ranks == 2:
        many = ["--pairs", str(setting.pairs)]
        print(json.dumps(two_ranks(name, "--ranks", "2", *many) | {"n": setting.pairs, "torch": torch.__version__}))
        return
    if options.busy:
        global clock
        clock = time.process_time
        torch.set_num_threads(1)
    torch.backends.cudnn.benchmark = True  # for both loops
    found = compare(setting, device)
    found |= on_gpu(setting, device) if device.type == "cuda" else two_ranks(name)
    where = torch.cuda.get_device_name() if device.type == "cuda" else f"{os.cpu_count()} cores"
    print(
        json.dumps(
            found
            | {
                "hardware": where,
                "torch": torch.__version__,
                "precision": setting.precision,
                "busy": options.busy,
                "n": setting.pairs,
            }
        )
    )


if __name__ == "__main__":
    main()
