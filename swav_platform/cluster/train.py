"""The training loop on Ray Train workers, fed by the stream."""

from __future__ import annotations

import contextlib
import json
import logging
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from swav_platform.atomic import write_text
from swav_platform.cluster.session import Room
from swav_platform.cluster.signals import own_signals
from swav_platform.config import Config, from_tree
from swav_platform.data.ledger.ledger import Ledger
from swav_platform.errors import UserError
from swav_platform.runs.folder import RunFolder


@dataclass(frozen=True)
class TrainJob:
    """What a rank is told. Paths are absolute: a worker's current folder is Ray's."""

    config: dict[str, Any]
    index: str
    index_digest: str
    samples: int
    run_dir: str
    tasks: int
    tracking_uri: str
    run_id: str
    attempt: str  # a worker that outlives a killed attempt must not answer for this one

    def outcome(self) -> Path:
        """Where the leading rank writes the result, or any rank why there is none."""
        return Path(self.run_dir) / f".result-{self.attempt}.json"


def fit(job: TrainJob, room: Room, *, failures: int = 3) -> dict[str, Any]:
    """Trains on config.train.workers ranks and returns the run's result.

    A lost worker restarts the group from the newest checkpoint, `failures` times. Raises UserError, KeyboardInterrupt on SIGINT,
    and the SystemExit of SIGTERM's handler.
    """
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer

    config = from_tree(job.config)
    folder = RunFolder(Path(job.run_dir))
    for left in (folder.worker_log, *folder.path.glob(".result-*.json")):
        left.unlink(missing_ok=True)
    gpus = _has_gpus(config.train.workers)
    trainer = TorchTrainer(
        _rank,
        train_loop_config={"job": asdict(job)},
        scaling_config=ray.train.ScalingConfig(num_workers=config.train.workers, use_gpu=gpus, resources_per_worker={"CPU": 1}),
        torch_config=TorchConfig(backend="nccl" if gpus else "gloo"),
        run_config=ray.train.RunConfig(
            name=f"train-{uuid.uuid4().hex[:8]}",  # a name of its own: Ray would else restore a state that is not the truth
            storage_path=str(Path(job.run_dir) / "ray"),
            failure_config=ray.train.FailureConfig(max_failures=failures),
        ),
    )
    try:
        with own_signals():
            trainer.fit()
    except ray.train.TrainingFailedError as error:
        raise UserError(
            f"Training of run {config.run.name} ended early: {_root_cause(error)}. What was committed is in "
            f"{job.run_dir}/checkpoints; start again with --resume."
        ) from error
    result = json.loads(job.outcome().read_text())
    job.outcome().unlink()
    if "error" in result:
        raise UserError(result["error"])
    return result


def _has_gpus(workers: int) -> bool:
    import ray

    return int(ray.cluster_resources().get("GPU", 0)) >= workers


def _root_cause(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__


def _rank(loop_config: dict[str, Any]) -> None:
    """Runs in each Ray Train worker."""
    import ray.train
    import ray.train.torch
    import torch

    from swav_platform.cluster.prometheus import Exporter
    from swav_platform.registry import Tracker
    from swav_platform.training.collectives import DistributedComm
    from swav_platform.training.loop import Progress, train

    job = TrainJob(**loop_config["job"])
    folder = RunFolder(Path(job.run_dir))
    if job.outcome().is_file():  # the group was started again after an error that would only come again
        return
    config, comm, leads = from_tree(job.config), DistributedComm(), ray.train.get_context().get_world_rank() == 0
    tracker = Tracker(job.tracking_uri, job.run_id) if leads else None
    listeners = [tracker.progress, Exporter(str(config.run.name)).progress] if tracker else []

    def tell(progress: Progress) -> None:
        for listener in listeners:
            listener(progress)

    warned = _warnings_to(folder.worker_log) if leads else None
    try:
        with folder.written() if leads else contextlib.nullcontext():
            comm.sum(torch.zeros(1))  # nobody looks at checkpoints before nobody else writes them
            result = train(
                config,
                samples=job.samples,
                index_digest=job.index_digest,
                rows=_stream(job, config, comm.rank, comm.size),
                comm=comm,
                run_dir=folder.path,
                resume=True,
                on_progress=tell,
                device=str(ray.train.torch.get_device()),
            )
        if leads:
            write_text(job.outcome(), json.dumps({**asdict(result), "checkpoint": str(result.checkpoint)}))
    except Exception as error:
        if (said := _for_users(error)) is None:
            raise
        write_text(job.outcome(), json.dumps({"error": said}))  # a file, because Ray would only say that a worker failed
        if comm.size > 1:
            raise  # the other ranks may wait for this one
    finally:
        if tracker:
            tracker.close()
        if warned:
            warned.close()


def _for_users(error: BaseException | None) -> str | None:
    """What a UserError says, of this process or of a data task, whose errors Ray wraps up; None for other errors."""
    from ray.exceptions import RayTaskError

    while error is not None:
        if isinstance(error, UserError) and not isinstance(error, RayTaskError):
            return str(error).partition("\n")[0]  # Ray adds advice for programmers
        error = getattr(error, "cause", None) or error.__cause__
    return None


def _warnings_to(path: Path) -> logging.Handler:
    """Warnings of training and tracking go to a file from now on: Ray shows nobody what its workers say."""
    handler = logging.FileHandler(path, delay=True, encoding="utf-8")
    handler.setLevel(logging.WARNING)
    for name in ("swav", "swav_platform.registry"):
        logging.getLogger(name).addHandler(handler)
    return handler


def _stream(job: TrainJob, config: Config, rank: int, ranks: int) -> Callable[[int, int], Iterator[Any]]:
    """`rows(first, last)` of the training loop: this rank's share of the pipelines that rank 0 opens."""
    import torch.distributed as dist

    from swav_platform.cluster.stream import open_pipelines, rank_rows
    from swav_platform.rows.job import RowJob

    def rows(first: int, last: int) -> Iterator[Any]:
        pipelines: list[Any] = [None]
        if rank == 0:
            data = config.data.model_copy(update={"tasks": job.tasks})
            known = _known_killers(RunFolder(Path(job.run_dir)))
            stream = RowJob(config.model_copy(update={"data": data}), job.index, known)
            pipelines = [open_pipelines(stream, first, last, ranks)]
        if ranks > 1:
            dist.broadcast_object_list(pipelines, src=0)
        return rank_rows(pipelines[0], rank)

    return rows


def _known_killers(folder: RunFolder) -> dict[int, Any]:
    """Samples that the newest checkpoint knows to kill whoever decodes them."""
    from swav_platform.rows.isolation import killers_among
    from swav_platform.training.checkpoints import store as checkpoints

    newest = checkpoints.latest_valid(folder.checkpoints)
    return {} if newest is None else killers_among(Ledger.read(newest / "ledger.parquet").events())
