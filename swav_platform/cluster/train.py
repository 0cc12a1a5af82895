"""Runs the training loop on Ray Train workers, with rows from the streams."""

from __future__ import annotations

import contextlib
import json
import logging
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from swav_platform.cluster import room
from swav_platform.cluster.monitor import Monitor
from swav_platform.cluster.report import Report
from swav_platform.cluster.room import Group
from swav_platform.cluster.session import RELEASE_TIMEOUT
from swav_platform.cluster.signals import checkpoint_on_sigterm, own_signals
from swav_platform.cluster.stall import EXPLAIN_SECONDS
from swav_platform.config import Config, from_tree
from swav_platform.config.secrets import SecretsFilter
from swav_platform.errors import UserError
from swav_platform.runs.folder import RunFolder
from swav_platform.runs.health_file import to_log_and_health
from swav_platform.runs.storage import place_of
from swav_platform.training.collectives import PATIENCE


@dataclass(frozen=True)
class TrainJob:
    """Input of each rank. Paths are absolute, because Ray sets the workers' current folder."""

    config: dict[str, Any]
    index: str
    index_digest: str
    samples: int
    run_dir: str
    tracking_uri: str
    tasks: int = 1
    device: str = "cpu"
    attempt: str = ""  # unique: a worker left over from a killed attempt must not write the result of this one

    @property
    def folder(self) -> RunFolder:
        return RunFolder.at(place_of(self.run_dir))

    @property
    def result_key(self) -> str:
        """The object in the run's storage for the result of rank 0, or for an error of any rank that the user should see."""
        return f".result-{self.attempt}.json"

    def write_result(self, result: dict[str, Any]) -> None:
        self.folder.storage.put(self.result_key, json.dumps(result).encode())


def fit(job: TrainJob, group: Group, report: Report, *, local: bool = True) -> dict[str, Any]:
    """Trains to the end, with groups of workers as the cluster has room for, and returns the run's result. group: the first one.

    A group ends early when a worker fails, when its node is going away, and when another size fits better. The next one continues from
    the newest checkpoint. local: the Ray belongs to this process, so nobody else uses it.

    Raises UserError, also after `train.retries` failures without a new checkpoint in between; KeyboardInterrupt on SIGINT. On SIGTERM
    ranks write a checkpoint first, if that takes at most GRACE_SECONDS; then the program's handler raises SystemExit.
    """
    from swav_platform.cluster.watch import start_watch

    config, folder = from_tree(job.config), job.folder
    folder.path.mkdir(parents=True, exist_ok=True)
    folder.storage.delete([folder.worker_log.name])
    watch, tried = start_watch(), None
    newest: Path | str | None = None
    failures = 0
    while True:
        job = replace(job, tasks=group.tasks, device=group.device, attempt=uuid.uuid4().hex)
        report.group(group)
        nodes = room.nodes_now()
        monitor = Monitor(watch, job.attempt, config, group, folder.path, report, tried)
        outcome = _run_group(job, group, watch, monitor)
        tried = monitor.tried
        if isinstance(outcome, dict):
            return outcome
        if outcome.failed:
            newest, before = _newest(folder), newest
            failures = 1 if newest != before else failures + 1
            if failures > config.train.retries:
                raise UserError(
                    f"Training of run {config.run.name} failed: {outcome.why}. Its checkpoints are in {folder.checkpoints}; "
                    f"continue with --resume."
                )
        lost = len({node.id for node in nodes} - {node.id for node in room.nodes_now(reachable=True)}) if outcome.failed else 0
        report.restart(f"lost {lost} node{'s' * (lost > 1)}" if lost else outcome.why)
        group = next_group(config, group.device, report, local)


@dataclass(frozen=True)
class Ended:
    """A group that ended before the run. failed: counts as a failure."""

    why: str
    failed: bool


def _run_group(job: TrainJob, group: Group, watch: Any, monitor: Monitor) -> dict[str, Any] | Ended:
    """Runs one group of workers to its end. Returns the run's result if the run is finished."""
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer

    gpus = group.device == "cuda"
    once: Any = ray.train.FailureConfig  # annotated as that of Ray Train V1
    trainer = TorchTrainer(
        _rank,
        train_loop_config={"job": asdict(job), "watch": watch},
        scaling_config=ray.train.ScalingConfig(
            num_workers=group.workers,
            use_gpu=gpus,
            resources_per_worker={"CPU": 1},
            placement_strategy="PACK" if gpus else "SPREAD",  # GPUs of a node are connected; CPU nodes keep cores for data
        ),
        torch_config=TorchConfig(backend="nccl" if gpus else "gloo", timeout_s=int(PATIENCE)),
        run_config=ray.train.RunConfig(
            name=f"train-{uuid.uuid4().hex[:8]}",  # unique: Ray would restore its own state of an earlier attempt
            storage_path=str(job.folder.path / "ray"),
            failure_config=once(max_failures=0, controller_failure_limit=0, max_preemption_failures=0),
        ),
    )
    failure: Exception | None = None
    with monitor, checkpoint_on_sigterm(monitor.request):
        try:
            with own_signals():
                trainer.fit()
        except ray.train.TrainingFailedError as error:
            failure = error
    return _outcome(job, monitor, failure)


def _outcome(job: TrainJob, monitor: Monitor, failure: Exception | None) -> dict[str, Any] | Ended:
    found: dict[str, Any] = {}
    if job.folder.has(job.result_key):
        found = json.loads(job.folder.storage.get(job.result_key))
        job.folder.storage.delete([job.result_key])
    if "error" in found:
        raise UserError(found["error"])
    if "interrupted" in found:
        return Ended(found["interrupted"], failed=False)
    if failure is None:
        return found
    if monitor.why:
        return Ended(monitor.why, failed=not monitor.released)
    from ray.train import ControllerError

    if isinstance(failure, ControllerError) and "StartupTimeout" in repr(failure.controller_failure):
        return Ended("the nodes could not hold the workers", failed=False)
    return Ended(_root_cause(failure), failed=True)


def next_group(config: Config, device: str, report: Report, local: bool) -> Group:
    """Waits until the fewest workers fit, and a little longer for CPUs that the last group releases."""
    began = time.monotonic()
    while True:
        nodes = room.nodes_now(reachable=True)
        free = nodes if local else room.free_nodes(nodes)
        whole, found = room.choose(config, nodes, device), room.choose(config, free, device)
        waited = time.monotonic() - began
        if found is not None and (found == whole or waited > RELEASE_TIMEOUT):
            return found
        if waited > EXPLAIN_SECONDS:
            busy = " that other jobs hold" if whole is not None else ""
            report.waiting(room.lacking(config, free, device) + busy, seconds=waited)
        time.sleep(1)


def _newest(folder: RunFolder) -> Path | str | None:
    from swav_platform.training.checkpoints import store as checkpoints

    return checkpoints.latest_valid(folder.checkpoints)


def _root_cause(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__


def _rank(loop_config: dict[str, Any]) -> None:
    """Entry point of each Ray Train worker."""
    import ray.train
    import ray.train.torch
    import torch

    from swav_platform.cluster.prometheus import Exporter
    from swav_platform.cluster.watch import Heart
    from swav_platform.registry import Tracker, node_metrics
    from swav_platform.training.collectives import DistributedComm
    from swav_platform.training.loop import Progress, train
    from swav_platform.training.notices import Interrupted, Notices

    job = TrainJob(**loop_config["job"])
    folder = job.folder
    config, comm, rank_0 = from_tree(job.config), DistributedComm(), ray.train.get_context().get_world_rank() == 0
    listeners = [Exporter(str(config.run.name)).progress] if rank_0 else []

    def notify(progress: Progress) -> None:
        for listener in listeners:
            listener(progress)

    log_file = _warnings_to(folder.worker_log) if rank_0 else None
    notices = Notices(ask=_drained)
    heart = Heart(loop_config["watch"], job.attempt, comm.rank, notices, lambda: comm.calls.total())
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
                notices=notices,
            )
        if rank_0:
            job.write_result({**asdict(result), "checkpoint": str(result.checkpoint)})
    except Interrupted as interrupted:  # all ranks return, so Ray Train sees a group that is done
        if rank_0:
            job.write_result({"interrupted": str(interrupted)})
    except Exception as error:
        if (message := user_message(error)) is None:
            raise
        job.write_result({"error": message})  # Ray itself would only report a failed worker
        if comm.size > 1:
            raise  # the other ranks may be waiting for this one
    finally:
        heart.stop()
        if log_file:
            log_file.close()
            _publish_log(folder)


def _publish_log(folder: RunFolder) -> None:
    """Copies the warnings of rank 0 to the run's storage, if that is not this disk."""
    if folder.worker_log.is_file():
        with contextlib.suppress(UserError):  # the result matters more
            folder.publish(folder.worker_log.name)


def _drained() -> str | None:
    """Why to leave, if Ray knows that nodes of this group go away; else None. A collective of Ray Train."""
    import ray.train

    info = ray.train.get_preemption_info()
    if info is None:
        return None
    return f"nodes go away (workers {', '.join(map(str, info.preempted_ranks))})"


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
    from swav_platform.cluster.waits import WaitReporter
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
