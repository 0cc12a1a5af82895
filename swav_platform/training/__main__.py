"""Pretraining without Ray and MLflow: `torchrun --nproc-per-node N -m swav_platform.training CONFIG --data PATTERN [key=value ...]`.

Configuration, rows and run folder are the same as for `swav pretrain`. torchrun sets the number of workers.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import torch

from swav_platform.config import Config, load_with
from swav_platform.data.datasets import check_one_pass, open_or_build, plan_of
from swav_platform.data.index.lookup import Index
from swav_platform.errors import UsageError, UserError
from swav_platform.methods.comm import Comm, LocalComm
from swav_platform.rows.job import RowJob
from swav_platform.runs.folder import RunFolder, runs_folder
from swav_platform.runs.health_file import to_log_and_health
from swav_platform.runs.storage import join
from swav_platform.training import preflight
from swav_platform.training.checkpoints.export import export_package
from swav_platform.training.checkpoints.resume import known_run
from swav_platform.training.checkpoints.store import known_killers
from swav_platform.training.collectives import PATIENCE, broadcast_bytes, joined
from swav_platform.training.device import chosen
from swav_platform.training.local_rows import local_rows
from swav_platform.training.loop import Progress, train

log = logging.getLogger("swav")


def main() -> int:
    parser = argparse.ArgumentParser(prog="swav_platform.training", description=__doc__)
    parser.add_argument("config")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--data", action="append", default=[], metavar="PATTERN", help="Shards: paths, globs or ranges, quoted.")
    parser.add_argument("--name", help="The run's name.")
    parser.add_argument("--out", metavar="DIR", help="Folder of the runs (default: SWAV_OUT, else ./runs).")
    parser.add_argument("--resume", action="store_true", help="Resume from the newest checkpoint, if there is one.")
    options = parser.parse_intermixed_args()
    try:
        config = _configured(options, int(os.environ.get("WORLD_SIZE", 1)))
        with _ranks(config) as (comm, device):
            result = pretrain(config, comm, device, options.resume)
        if comm.rank == 0:
            print(json.dumps(result))
    except UserError as error:
        print(f"swav_platform.training: {error}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    return 0


def pretrain(config: Config, comm: Comm, device: torch.device, resume: bool) -> dict[str, Any]:
    """One rank of a run, from shards to a model package. Every rank returns the result."""
    if config.run.name is None:
        raise UsageError("A run under torchrun needs a name that is the same on all ranks: pass --name NAME.")
    folder = RunFolder.at(join(runs_folder(config.run.out), config.run.name))
    collectives: dict[str, int] = {}

    def note(progress: Progress) -> None:
        collectives.update(progress.collectives)

    with folder.claimed() if comm.rank == 0 else contextlib.nullcontext(lambda: None) as confirm:
        known = known_run(folder, config, resume) if comm.rank == 0 else {}
        place = _index(config, folder, comm, bool(known))
        index = Index.open(place)
        if comm.rank == 0:
            for warning in preflight.warnings(config, preflight.schedule(config, index.samples)):
                log.warning(warning)
            kept = {name: known.get(name) for name in ("run_id", "tracking_uri", "created")}
            folder.write(config, index=place, index_digest=index.digest, samples=index.samples, **kept)
        tell = to_log_and_health(folder.path) if comm.rank == 0 else None
        result = train(
            config,
            samples=index.samples,
            index_digest=index.digest,
            rows=local_rows(RowJob(config, place, known_killers(folder)), comm, tell),
            comm=comm,
            run_dir=folder.place,
            resume=resume,
            on_progress=note,
            device=device,
            confirm=confirm,
        )
        found = {"run": folder.name, **asdict(result), "checkpoint": str(result.checkpoint), "collectives": collectives}
        if comm.rank == 0:
            export_package(folder, result.checkpoint)
            folder.write_summary(found)
    return found


def _configured(options: argparse.Namespace, size: int) -> Config:
    overrides = [*options.overrides, f"train.workers={size}"]
    return load_with(options.config, overrides, data=options.data or (), name=options.name, out=options.out)


def _index(config: Config, folder: RunFolder, comm: Comm, known: bool) -> str:
    """The place of the index. Rank 0 builds it while the other ranks wait."""
    place = ""
    if comm.rank == 0:
        if known:
            folder.bring_index()
        index = open_or_build(config.data, folder.index)
        check_one_pass(plan_of(index, config.data, config.seed), config.data, config.rows_per_step, config.steps(index.samples))
        place = folder.share_index(index.place)
    return broadcast_bytes(place.encode(), comm).decode()


@contextlib.contextmanager
def _ranks(config: Config) -> Iterator[tuple[Comm, torch.device]]:
    """Joins the process group of torchrun's environment; without one, this process is the only rank."""
    here = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    gpu = chosen(config.train.device, torch.cuda.device_count(), here, "this machine") == "cuda"
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if gpu else torch.device("cpu")
    if gpu:
        torch.cuda.set_device(device)
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield LocalComm(), device
        return
    backend = "nccl" if gpu else "gloo"
    with joined(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), backend=backend, timeout=PATIENCE) as comm:
        yield comm, device


if __name__ == "__main__":
    sys.exit(main())
