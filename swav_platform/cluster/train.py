"""Runs the training loop on Ray Train workers, with rows from the streams."""

from __future__ import annotations

import contextlib
import json
import logging
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from swav_platform.cluster.session import cluster_resources
from swav_platform.cluster.signals import own_signals
from swav_platform.config import Config, from_tree
from swav_platform.config.secrets import SecretsFilter
from swav_platform.errors import UserError
from swav_platform.runs.folder import RunFolder
from swav_platform.runs.storage import place_of


@dataclass(frozen=True)
class TrainJob:
    """Input of each rank. Paths are absolute, because Ray sets the workers' current folder."""

    config: dict[str, Any]
    index: str
    index_digest: str
    samples: int
    run_dir: str
    tasks: int
    tracking_uri: str
    attempt: str  # unique: a worker left over from a killed attempt must not write the result of this one

    @property
    def folder(self) -> RunFolder:
        return RunFolder.at(place_of(self.run_dir))

    @property
    def result_key(self) -> str:
        """The object in the run's storage for the result of rank 0, or for an error of any rank that the user should see."""
        return f".result-{self.attempt}.json"

    def write_result(self, result: dict[str, Any]) -> None:
        self.folder.storage.put(self.result_key, json.dumps(result).encode())


def fit(job: TrainJob, *, failures: int = 3) -> dict[str, Any]:
    """Trains on config.train.workers ranks and returns the run's result.

    failures: how often a lost worker restarts all ranks from the newest checkpoint. Raises UserError, KeyboardInterrupt on
    SIGINT, and on SIGTERM the SystemExit of the program's handler.
    """
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer

    config = from_tree(job.config)
    folder = job.folder
    folder.path.mkdir(parents=True, exist_ok=True)
    folder.storage.delete([folder.worker_log.name])
    gpus = _has_gpus(config.train.workers)
    trainer = TorchTrainer(
        _rank,
        train_loop_config={"job": asdict(job)},
        scaling_config=ray.train.ScalingConfig(num_workers=config.train.workers, use_gpu=gpus, resources_per_worker={"CPU": 1}),
        torch_config=TorchConfig(backend="nccl" if gpus else "gloo"),
        run_config=ray.train.RunConfig(
            name=f"train-{uuid.uuid4().hex[:8]}",  # unique: Ray would restore its own state of an earlier attempt
            storage_path=str(job.folder.path / "ray"),
            failure_config=ray.train.FailureConfig(max_failures=failures),
        ),
    )
    try:
        with own_signals():
            trainer.fit()
    except ray.train.TrainingFailedError as error:
        raise UserError(
            f"Training of run {config.run.name} failed: {_root_cause(error)}. Its checkpoints are in {job.run_dir}/checkpoints; "
            f"continue with --resume."
        ) from error
    result: dict[str, Any] = json.loads(folder.storage.get(job.result_key))
    folder.storage.delete([job.result_key])
    if "error" in result:
        raise UserError(result["error"])
    return result


def _has_gpus(workers: int) -> bool:
    return int(cluster_resources().get("GPU", 0)) >= workers


def _root_cause(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__


def _rank(loop_config: dict[str, Any]) -> None:
    """Entry point of each Ray Train worker."""
    import ray.train
    import ray.train.torch
    import torch

    from swav_platform.cluster.prometheus import Exporter
    from swav_platform.registry import Tracker, node_metrics
    from swav_platform.training.collectives import DistributedComm
    from swav_platform.training.loop import Progress, train

    job = TrainJob(**loop_config["job"])
    folder = job.folder
    if folder.has(job.result_key):  # Ray restarted the ranks after an error that a restart does not fix
        return
    config, comm, rank_0 = from_tree(job.config), DistributedComm(), ray.train.get_context().get_world_rank() == 0
    listeners = [Exporter(str(config.run.name)).progress] if rank_0 else []

    def notify(progress: Progress) -> None:
        for listener in listeners:
            listener(progress)

    log_file = _warnings_to(folder.worker_log) if rank_0 else None
    try:
        with contextlib.ExitStack() as inside:
            confirm = inside.enter_context(folder.written() if rank_0 else contextlib.nullcontext(lambda: None))
            if rank_0:
                inside.enter_context(Tracker(folder, job.tracking_uri))  # inside the lock: two trackers would send points twice
            if config.tracking.system_metrics and ray.train.get_context().get_local_rank() == 0:
                inside.enter_context(node_metrics(folder, job.tracking_uri))
            comm.sum(torch.zeros(1))  # barrier: no rank reads checkpoints before rank 0 holds the folder's lock
            result = train(
                config,
                samples=job.samples,
                index_digest=job.index_digest,
                rows=_rows_of(job, config, comm.rank, comm.size),
                comm=comm,
                run_dir=folder.place,
                confirm=confirm,
                resume=True,
                on_progress=notify,
                device=str(ray.train.torch.get_device()),
            )
        if rank_0:
            job.write_result({**asdict(result), "checkpoint": str(result.checkpoint)})
    except Exception as error:
        if (message := user_message(error)) is None:
            raise
        job.write_result({"error": message})  # Ray itself would only report a failed worker
        if comm.size > 1:
            raise  # the other ranks may be waiting for this one
    finally:
        if log_file:
            log_file.close()
            _publish_log(folder)


def _publish_log(folder: RunFolder) -> None:
    """Copies the warnings of rank 0 to the run's storage, if that is not this disk."""
    if folder.worker_log.is_file():
        with contextlib.suppress(UserError):  # the result matters more
            folder.publish(folder.worker_log.name)


def user_message(error: BaseException | None) -> str | None:
    """Message of a UserError of this process or of a data task, whose errors Ray wraps; None for other errors."""
    from ray.exceptions import RayTaskError

    while error is not None:
        if isinstance(error, UserError) and not isinstance(error, RayTaskError):
            return str(error).partition("\n")[0]  # Ray appends advice for developers
        error = getattr(error, "cause", None) or error.__cause__
    return None


def _warnings_to(path: Path) -> logging.Handler:
    """Copies warnings of training and tracking to a file, because Ray does not forward the workers' output."""
    handler = logging.FileHandler(path, delay=True, encoding="utf-8")
    handler.setLevel(logging.WARNING)
    handler.addFilter(SecretsFilter())
    logging.getLogger("swav").addHandler(handler)
    return handler


def _rows_of(job: TrainJob, config: Config, rank: int, ranks: int) -> Callable[[int, int], Iterator[Any]]:
    """`rows(first, last)` of the training loop: this rank's rows of the streams that rank 0 opens."""
    import torch.distributed as dist

    from swav_platform.cluster.stream import open_streams, rank_rows
    from swav_platform.cluster.waits import WaitReporter, to_log_and_health
    from swav_platform.rows.job import RowJob
    from swav_platform.training.checkpoints.store import known_killers

    def rows(first: int, last: int) -> Iterator[Any]:
        streams: list[Any] = [None]
        reporter = None
        if rank == 0:
            data = config.data.model_copy(update={"tasks": job.tasks})
            known = known_killers(job.folder)
            row_job = RowJob(config.model_copy(update={"data": data}), job.index, known)
            streams = [open_streams(row_job, first, last, ranks)]
            reporter = WaitReporter(streams[0].segments, to_log_and_health(job.folder.path))
        if ranks > 1:
            dist.broadcast_object_list(streams, src=0)
        try:
            yield from rank_rows(streams[0], rank)
        finally:
            if reporter:
                reporter.stop()

    return rows
