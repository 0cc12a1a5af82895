"""Embeds a whole index and assigns clusters, in parts. The service answers neighbour and cluster requests from the result."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch

from swav_platform.config import ImagePolicy
from swav_platform.data.index.lookup import Index
from swav_platform.data.sets.layout import DType, PartReport, Recipe, Space
from swav_platform.data.sets.write import begin, finish
from swav_platform.evaluation.parts import EmbedJob, PartMaker, on_this_machine, usual_runtime
from swav_platform.failures import Tell
from swav_platform.models.package import load_package, package_digest
from swav_platform.models.runtimes.runtime import digest_with
from swav_platform.runs.storage import Place, storage_of

RUNTIMES = ("auto", "torch", "compile", "bf16", "onnx", "int8")
PRECISIONS = {"bf16": "bf16", "int8": "int8"}
"""Of the runtimes that do not compute in float32: their vectors are those of another model."""

Progress = Callable[[int, int], None]
"""progress(done, total): samples."""

Runner = Callable[[EmbedJob, list[int], Callable[[int], None]], Iterable[tuple[int, PartReport]]]
"""runner(job, numbers, done): makes these parts and yields their reports in any order. done(n): n more samples are encoded."""


def embed_job(
    package: Place,
    index: Index,
    target: Place,
    policy: ImagePolicy,
    *,
    space: Space = "backbone",
    dtype: DType = "float16",
    thumbnails: bool = False,
    patience: float = 1800.0,
    runtime: str = "auto",
) -> EmbedJob:
    """The job that embeds `index` with the model in the folder or URL `package`."""
    folder = on_this_machine(str(package))
    meta = load_package(folder).meta  # says what is wrong with a damaged package before any machine starts
    size = int(meta["input_size"])
    recipe = Recipe(
        model=digest_with(package_digest(folder), PRECISIONS.get(runtime, "fp32")),
        index=index.digest,
        samples=index.samples,
        dim=int(meta["feature_dim"] if space == "backbone" else meta["projection_dim"]),
        transform={"size": size, "resize": size if size <= 64 else round(size * 8 / 7), "mean": meta["mean"], "std": meta["std"]},
        space=space,
        dtype=dtype,
        thumbnails=thumbnails,
    )
    return EmbedJob(str(package), index.place, str(target), recipe, policy, patience, runtime)


def embed(job: EmbedJob, run: Runner | None = None, progress: Progress = lambda done, total: None) -> dict[str, Any]:
    """Writes the set of a job, or what is missing of it. run: where the parts are made; in this process by default.

    Returns samples (embedded), labelled, refused (by outcome), images_per_second, parts, dim, model, index_digest and out.
    """
    storage, recipe = storage_of(job.target), job.recipe
    reports = begin(storage, recipe)
    kept = sum(report.rows for report in reports.values())
    missing = [number for number in range(len(recipe.parts)) if number not in reports]
    seen, began = kept, time.monotonic()

    def done(samples: int) -> None:
        nonlocal seen
        seen += samples
        progress(min(seen, recipe.samples), recipe.samples)

    done(0)
    if missing:
        reports |= dict((run or run_here)(job, missing, done))
    seconds = time.monotonic() - began
    manifest = finish(storage, recipe, [reports[number] for number in range(len(recipe.parts))])
    return {
        "samples": manifest["embedded"],
        "labelled": manifest["labelled"],
        "refused": manifest["refused"],
        "images_per_second": round((recipe.samples - kept) / max(seconds, 1e-9), 1),
        "parts": len(recipe.parts),
        "dim": recipe.dim,
        "model": recipe.model,
        "index_digest": recipe.index,
        "out": job.target,
    }


@contextlib.contextmanager
def _torch_threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def run_here(
    job: EmbedJob, numbers: list[int], done: Callable[[int], None], tell: Tell | None = None
) -> Iterator[tuple[int, PartReport]]:
    """Makes parts in this process, with all its CPUs, or its GPU if it has one."""
    device, cores = "cuda" if torch.cuda.is_available() else "cpu", os.cpu_count() or 1
    maker = PartMaker(job, device=device, threads=max(2, cores))
    # Small images take as long to decode as to encode: with a thread per core, torch's threads would wait for the decoding ones.
    shared = device == "cpu" and usual_runtime(job.recipe.transform["size"], device) == "torch"
    with contextlib.closing(maker), _torch_threads(max(1, cores // 2) if shared else torch.get_num_threads()):
        for number in numbers:
            yield number, maker.make(number, done, tell)
