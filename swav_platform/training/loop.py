"""The training loop of one rank, from rows to checkpoints. Ray Train, torchrun and tests call the same function."""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from swav_platform.config import Config
from swav_platform.data.ledger.parts import FOLDER, worst
from swav_platform.errors import UserError
from swav_platform.methods.comm import Comm
from swav_platform.models import normalisation
from swav_platform.runs.folder import Confirm, RunFolder
from swav_platform.runs.storage import Place, join
from swav_platform.training.checkpoints import snapshots
from swav_platform.training.checkpoints import store as checkpoints
from swav_platform.training.checkpoints.resume import Run, begin, identity
from swav_platform.training.checkpoints.writer import Writer
from swav_platform.training.collectives import all_or_none, gather_bytes
from swav_platform.training.counters import Counters, from_sum
from swav_platform.training.course import Course
from swav_platform.training.device import preparer, resolved, set_torch
from swav_platform.training.first_epoch import FirstEpoch
from swav_platform.training.health.monitor import Monitor, Unhealthy
from swav_platform.training.health.remedies import remedied, roll_back
from swav_platform.training.health.vitals import Vitals
from swav_platform.training.journal import Journal
from swav_platform.training.learner import Learner, build_learner
from swav_platform.training.meter import Meter
from swav_platform.training.notices import Interrupted, Notices
from swav_platform.training.passes import Prepare
from swav_platform.training.quarantine import Recent, too_many
from swav_platform.training.step import NotFinite, StepReport

if TYPE_CHECKING:
    from swav_platform.rows.layout import Row

Rows = Callable[[int, int], "Iterator[Row]"]
"""rows(first, last): in order, the rows k of [first, last) with (k - first) % size == rank."""


@dataclass(frozen=True)
class Progress:
    """A finished step. metrics: by MLflow name; empty for a step that is not logged."""

    step: int  # 0-based
    loss: float
    lr: float
    metrics: dict[str, float]
    images_per_second: float  # of all ranks since the last logged step
    wait_share: float  # share of that time that rank 0 waited for rows
    collectives: dict[str, int]  # of the step, by purpose
    counters: Counters  # of the step's rows on all ranks
    waited: float  # seconds that rank 0 waited for the step's rows


@dataclass(frozen=True)
class TrainResult:
    """seconds and images_per_second are those of this call, everything else counts from the start of the run.

    quarantined: number of positions whose own sample was refused. blank: number of positions whose image is nearly black, nearly
    white or of one colour. copies: number of images of the first epoch that have the same bytes as others, on rank 0.
    """

    steps: int
    images: int
    loss_first: float
    loss_last: float
    images_per_second: float
    checkpoint: Place
    quarantined: int
    blank: int
    copies: int
    seconds: float


def train(
    config: Config,
    *,
    samples: int,
    index_digest: str,
    rows: Rows,
    comm: Comm,
    run_dir: Place,
    resume: bool,
    on_progress: Callable[[Progress], None] | None = None,
    device: str | torch.device = "cpu",
    prepare: Prepare | None = None,
    confirm: Confirm = lambda: None,
    notices: Notices | None = None,
) -> TrainResult:
    """Trains until the run is finished.

    samples: size of the index, from which the number of steps follows. rows: called once, with the first row after the newest
    checkpoint. on_progress: called on rank 0 after each step. prepare: converts a row to the network's input; by default as
    `config.data.photometric` requires. confirm: raises UserError if another process writes to the run. notices: requests to stop early.
    Changes threads, kernels and (on a CPU) memory allocation of the process; see `set_torch`.

    With `train.health=rollback`, `rows` is called again, from the last healthy checkpoint, and the configuration with its remedies
    applies from there on.

    Raises Interrupted after a request to stop, with a checkpoint of the last step. Raises UserError for an existing run without `resume`,
    a run with another configuration or index, and a stream out of order. Also for a loss that is not finite, too many unusable images,
    and files that can't be written. Checkpoints stay valid in all cases. Raises Unhealthy, a UserError, as `train.health` asks.
    """
    device, folder = torch.device(device), RunFolder.at(run_dir)
    who = identity(config, index_digest) | {"precision": resolved(config, device).train.precision}
    while True:
        now = resolved(remedied(config, folder, comm), device)
        try:
            return _train(
                now,
                samples=samples,
                who=who,
                rows=rows,
                comm=comm,
                folder=folder,
                resume=resume,
                on_progress=on_progress,
                device=device,
                prepare=prepare or preparer(config, device),
                confirm=confirm,
                notices=notices or Notices(),
            )
        except Unhealthy as error:
            if config.train.health != "rollback":
                raise
            roll_back(folder, error, comm)
            resume = True


def _train(
    config: Config,
    *,
    samples: int,
    who: Mapping[str, str],
    rows: Rows,
    comm: Comm,
    folder: RunFolder,
    resume: bool,
    on_progress: Callable[[Progress], None] | None,
    device: torch.device,
    prepare: Prepare,
    confirm: Confirm,
    notices: Notices,
) -> TrainResult:
    began = time.perf_counter()
    set_torch(config, device, comm.size)
    learner = build_learner(config, device, comm.size)
    if config.model.normalisation == "step":
        normalisation.across(learner.network, comm)
    run = begin(learner, folder.checkpoints, who, comm, resume)
    course = Course(config, samples, learner, comm, prepare)
    start, total = run.steps, course.total
    writer = Writer(folder, config.train.keep_checkpoints, confirm, config.data.storage_patience)
    seen = FirstEpoch(folder, samples, comm)
    all_or_none(lambda: writer.begin(start) if comm.rank == 0 else None, comm)
    with ExitStack() as inside:
        inside.enter_context(_uploaded_before_rollback(writer))
        journal = inside.enter_context(closing(Journal(config, folder.path, comm, run.ledger)))
        all_or_none(lambda: journal.open(start), comm)
        all_or_none(lambda: seen.open(start * config.train.batch), comm)
        meter, recent, vitals = Meter(comm), Recent(), Vitals(config)
        monitor = inside.enter_context(closing(Monitor(config, samples, total, folder.path, comm)))
        monitor.open()
        stream = inside.enter_context(closing(_checked(rows, start, total, config.rows_per_step, comm)))
        for step in range(start, total):
            notices.now("rows", step)
            with meter.waiting():
                own = next(stream)
            notices.now("step", step)
            last = step + 1 == total
            logged = last or step == 0 or (step + 1) % config.train.log_every == 0
            try:
                report, lr = course.make(step, own, vitals if logged else None, notices.numbers(comm.rank)), course.lr(step)
            except NotFinite as error:
                monitor.ended(step, error.loss, error.grad_norm)
                raise
            counters = from_sum(report.extra[2:])
            meter.step(config.train.batch, counters, reset=logged)
            recent.add(counters)
            progress = _after(run, report, lr, counters, meter, logged, seen)
            journal.rows(step, own)
            seen.rows(own)
            line = {"step": step, "loss": report.loss, "lr": lr} | progress.metrics
            journal.line(line)
            monitor.line(line, last)
            if on_progress is not None and comm.rank == 0:
                on_progress(progress)
            if logged:
                monitor.react()
                _check_quarantine(config, run, samples, journal, recent)
            if last:
                _check_trained(run, journal, recent)
            stop = notices.agreed(report.extra[:2])
            if last or stop or (step + 1) % config.train.checkpoint_every == 0:
                notices.now("checkpoint", step)
                _checkpoint(config, run, learner, journal, seen, who, writer, wait=last or stop is not None)
                seen.tell(run.steps * config.train.batch, last)
            if stop and not last:
                raise Interrupted(stop)
    return _result(run, seen, run.steps - start, config.train.batch, time.perf_counter() - began)


@contextmanager
def _uploaded_before_rollback(writer: Writer) -> Iterator[None]:
    """A checkpoint whose upload is running must not appear after the rollback has deleted the later ones."""
    try:
        yield
    except Unhealthy:
        writer.finish()
        raise


def _result(run: Run, seen: FirstEpoch, made: int, batch: int, seconds: float) -> TrainResult:
    assert run.checkpoint is not None  # written by the last step, or found at the start
    return TrainResult(
        steps=run.steps,
        images=run.steps * batch,
        loss_first=run.loss_first,
        loss_last=run.loss_last,
        images_per_second=made * batch / seconds,
        checkpoint=run.checkpoint,
        quarantined=run.quarantined,
        blank=run.blank,
        copies=seen.copied,
        seconds=seconds,
    )


def _checked(rows: Rows, start: int, total: int, per_step: int, comm: Comm) -> Generator[list[Row], None, None]:
    """This rank's rows of each step. Raises UserError for a row other than the expected one."""
    first = start * per_step
    stream = rows(first, total * per_step) if start < total else iter(())
    for step in range(start, total):
        numbers = range(step * per_step, (step + 1) * per_step)
        yield [_expect(next(stream, None), k, comm.rank) for k in numbers if (k - first) % comm.size == comm.rank]


def _expect(row: Row | None, number: int, rank: int) -> Row:
    if row is None or row.row != number:
        got = "the stream ended" if row is None else f"row {row.row} came"
        raise UserError(
            f"Worker {rank} expected row {number} of the stream, but {got}, so the run stopped before the step. "
            f"This is a fault of the data stream: resume with --resume, and report it if it happens again."
        )
    return row


def _after(run: Run, report: StepReport, lr: float, counters: Counters, meter: Meter, logged: bool, seen: FirstEpoch) -> Progress:
    """Adds the finished step to `run` and returns its progress."""
    step, run.steps, run.loss_last = run.steps, run.steps + 1, report.loss
    run.loss_first = report.loss if step == 0 else run.loss_first
    run.quarantined += counters.quarantined
    run.looks = tuple(before + new for before, new in zip(run.looks, counters.looks, strict=True))
    metrics = {
        "train/loss": report.loss,
        "train/lr": lr,
        **report.metrics,
        "data/images_per_second": meter.images_per_second,
        "data/wait_share": meter.wait_share,
        **({} if meter.collective_share is None else {"train/collective_share": meter.collective_share}),
        "data/quarantined_total": float(run.quarantined),
        "data/blank_total": float(run.blank),
        "data/copies_total": float(seen.copied),
        **meter.data.metrics(),
    }
    metrics = metrics if logged else {}
    return Progress(
        step, report.loss, lr, metrics, meter.images_per_second, meter.wait_share, report.collectives, counters, meter.waited_last
    )


def _check_quarantine(config: Config, run: Run, samples: int, journal: Journal, recent: Recent) -> None:
    """Raises UserError if too large a share of all positions, or of the last ones, had an unusable sample."""
    limit = config.data.max_quarantine_fraction
    share = too_many(limit, run.steps * config.train.batch, run.quarantined, samples, recent)
    if share is None:
        return
    reason, shard = _worst(journal, run.steps)
    raise UserError(
        f"{share} can't be used, more than data.max_quarantine_fraction={limit:g} allows. "
        f"The most frequent reason is {reason}; the worst shard is {shard}. Inspect the run with `swav ledger`, then remove bad shards, "
        f"relax data.images, or raise data.max_quarantine_fraction."
    )


def _check_trained(run: Run, journal: Journal, recent: Recent) -> None:
    """Raises UserError if the last positions of the run had no image at all."""
    if recent.trained == 0:
        reason, shard = _worst(journal, run.steps)
        raise UserError(
            f"None of the last {recent.positions:,} positions of the run had an image, so the run did not succeed. The most frequent reason "
            f"is {reason}; the worst shard is {shard}. Restore the shards and resume with --resume."
        )


def _worst(journal: Journal, steps: int) -> tuple[str, str]:
    """The most frequent reason and the worst shard until now. Writes the ledger, so that the user finds there what the message says."""
    all_or_none(lambda: journal.gather(steps), journal.comm)
    found = worst(journal.folder / FOLDER) if journal.comm.rank == 0 else ("", "")
    reason, shard = pickle.loads(gather_bytes(pickle.dumps(found), journal.comm)[0])  # safe: the bytes come from rank 0
    return reason, shard


def _checkpoint(
    config: Config,
    run: Run,
    learner: Learner,
    journal: Journal,
    seen: FirstEpoch,
    who: Mapping[str, str],
    writer: Writer,
    *,
    wait: bool,
) -> None:
    """All ranks gather, and rank 0 writes. If one rank fails, all fail.

    wait: returns when the checkpoint is complete. Otherwise an upload continues in the background, and while an earlier one is still
    running there is no new checkpoint.
    """
    comm = journal.comm
    if not wait and comm.max(torch.tensor([int(writer.busy)]))[0]:
        all_or_none(writer.check, comm)
        writer.say_skipped(run.steps)
        return
    seen.gather()
    steps = run.steps
    snapshot = snapshots.take(learner, steps, run.state(config, who), comm)

    def write() -> None:
        if snapshot is not None:
            writer.write(snapshot, lambda: journal.commit(steps), before=seen.ready(steps))
            if wait:
                writer.finish()

    all_or_none(lambda: journal.gather(steps), comm)
    all_or_none(journal.flush, comm)  # on every rank, before the checkpoint that refers to it
    all_or_none(write, comm)
    run.checkpoint = join(writer.folder, checkpoints.name_of(steps))
