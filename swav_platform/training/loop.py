"""The training loop: rows in, steps, checkpoints. A plain function of this rank; Ray Train, torchrun and tests call the same."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from swav_platform.config import Config
from swav_platform.errors import UserError
from swav_platform.methods.comm import Comm
from swav_platform.training import checkpoints, snapshots
from swav_platform.training.collectives import available_cores, gather_bytes
from swav_platform.training.health import quarantine_error, too_many_quarantined
from swav_platform.training.journal import Journal, quarantined
from swav_platform.training.resume import Run, begin, identity
from swav_platform.training.schedules import learning_rate
from swav_platform.training.step import Learner, Prepare, StepReport, train_step

if TYPE_CHECKING:
    from swav_platform.images.row import Row

Rows = Callable[[int, int], "Iterator[Row]"]
"""rows(first, last): this rank's rows of [first, last) in order, those k with (k - first) % size == rank."""


@dataclass(frozen=True)
class Progress:
    """A step that is done. `metrics` has MLflow's names and is empty between two steps that are logged."""

    step: int  # 0-based
    loss: float
    lr: float
    metrics: dict[str, float]
    images_per_second: float  # since the last logged step, all ranks
    wait_share: float  # of the time since then, spent waiting for rows (rank 0)


@dataclass(frozen=True)
class TrainResult:
    """steps, images, losses and quarantined (positions whose own sample was refused) of the run from its start; seconds and
    images_per_second of this call."""

    steps: int
    images: int
    loss_first: float
    loss_last: float
    images_per_second: float
    checkpoint: Path
    quarantined: int
    seconds: float


def train(
    config: Config,
    *,
    samples: int,
    index_digest: str,
    rows: Rows,
    comm: Comm,
    run_dir: Path,
    resume: bool,
    on_progress: Callable[[Progress], None] | None = None,
    device: str | torch.device = "cpu",
    prepare: Prepare | None = None,
) -> TrainResult:
    """Trains to the end of the run, or raises.

    samples: of the index; the number of steps follows from it. rows: called once, from the first row that no checkpoint has.
    on_progress: called by rank 0 after each step. prepare: how a row becomes the network's input; absent, as
    `config.data.photometric` says. Sets torch's number of threads.
    Raises UserError: a run is there and not to be resumed, or another configuration's; a stream out of order; a loss that is no
    number; too many unreadable images; something that can't be written. What was committed stays.
    """
    began, device, folder = time.perf_counter(), torch.device(device), run_dir / "checkpoints"
    torch.set_num_threads(config.train.threads or max(1, available_cores() // config.train.workers))
    learner, who = snapshots.build_learner(config, device), identity(config, index_digest)
    run = begin(learner, folder, who, comm, resume)
    prepare = prepare or _preparer(config, device)
    start, total = run.steps, config.steps(samples)
    with closing(Journal(config, run_dir, comm, run.ledger)) as journal:
        _all_or_none(lambda: journal.open(start), comm)
        meter = Meter(comm)
        stream = _checked(rows, start, total, config.rows_per_step, comm)
        for step in range(start, total):
            with meter.waiting():
                own = next(stream)
            if (epoch := config.epoch(step, samples)) != config.epoch(step - 1, samples):
                learner.method.start_epoch(epoch, comm)
            lr, last = learning_rate(step, total, config.train.optimiser), step + 1 == total
            logged = last or step == 0 or (step + 1) % config.train.log_every == 0
            report = train_step(
                step,
                own,
                learner,
                comm,
                prepare,
                batch=config.train.batch,
                lr=lr,
                precision=config.train.precision,
                extra=[quarantined(own)],
                metrics=logged,
            )
            meter.step(config.train.batch, fresh=logged)
            progress = _after(run, report, lr, meter, logged)
            journal.rows(step, own)
            journal.line({"step": step, "loss": report.loss, "lr": lr} | progress.metrics)
            if on_progress is not None and comm.rank == 0:
                on_progress(progress)
            if logged:
                _check_quarantine(config, run, samples, journal)
            if last or (step + 1) % config.train.checkpoint_every == 0:
                _checkpoint(config, run, learner, journal, who, folder)
    return _result(run, run.steps - start, config.train.batch, time.perf_counter() - began)


def _result(run: Run, made: int, batch: int, seconds: float) -> TrainResult:
    assert run.checkpoint is not None  # the last step wrote one, or there was one to begin with
    return TrainResult(
        steps=run.steps,
        images=run.steps * batch,
        loss_first=run.loss_first,
        loss_last=run.loss_last,
        images_per_second=made * batch / seconds,
        checkpoint=run.checkpoint,
        quarantined=run.quarantined,
        seconds=seconds,
    )


class Meter:
    """Images per second, and shares of time spent waiting for rows and in collectives, since the last fresh start."""

    images_per_second = wait_share = collective_share = 0.0

    def __init__(self, comm: Comm) -> None:
        self.comm = comm
        self._afresh()

    def _afresh(self) -> None:
        self.began, self.waited, self.images = time.perf_counter(), 0.0, 0
        self.communicated = getattr(self.comm, "seconds", 0.0)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        before = time.perf_counter()
        yield
        self.waited += time.perf_counter() - before

    def step(self, images: int, fresh: bool) -> None:
        """Counts a step's images; with `fresh`, counting starts anew after it."""
        self.images += images
        spent = max(time.perf_counter() - self.began, 1e-9)
        self.images_per_second, self.wait_share = self.images / spent, self.waited / spent
        self.collective_share = (getattr(self.comm, "seconds", 0.0) - self.communicated) / spent
        if fresh:
            self._afresh()


def _checked(rows: Rows, start: int, total: int, per_step: int, comm: Comm) -> Iterator[list[Row]]:
    """This rank's rows, step by step. Raises UserError for any but the expected one."""
    first = start * per_step
    stream = rows(first, total * per_step) if start < total else iter(())
    for step in range(start, total):
        numbers = range(step * per_step, (step + 1) * per_step)
        yield [_expect(next(stream, None), k, comm.rank) for k in numbers if (k - first) % comm.size == comm.rank]


def _expect(row: Row | None, number: int, rank: int) -> Row:
    if row is None or row.row != number:
        got = "the stream ended" if row is None else f"row {row.row} came"
        raise UserError(
            f"Worker {rank} expected row {number} of the stream, but {got}; the run was ended before a wrong row was trained on. "
            f"This is a fault of the data stream: go on with --resume, and report it if it comes again."
        )
    return row


def _after(run: Run, report: StepReport, lr: float, meter: Meter, logged: bool) -> Progress:
    """Brings `run` up to the step that is done and says how it went."""
    step, run.steps, run.loss_last = run.steps, run.steps + 1, report.loss
    run.loss_first = report.loss if step == 0 else run.loss_first
    run.quarantined += int(report.extra[0])
    metrics = {
        "train/loss": report.loss,
        "train/lr": lr,
        **report.metrics,
        "data/images_per_second": meter.images_per_second,
        "data/wait_share": meter.wait_share,
        "train/collective_share": meter.collective_share,
        "data/quarantined_total": float(run.quarantined),
    }
    return Progress(step, report.loss, lr, metrics if logged else {}, meter.images_per_second, meter.wait_share)


def _check_quarantine(config: Config, run: Run, samples: int, journal: Journal) -> None:
    limit, positions = config.data.max_quarantine_fraction, run.steps * config.train.batch
    if not too_many_quarantined(run.quarantined, positions, samples, limit):
        return
    ledger = journal.gather()
    journal.write_ledger()
    raise quarantine_error(run.quarantined, positions, limit, next(iter(ledger.outcomes())), ledger.shards()[0][0])


def _checkpoint(config: Config, run: Run, learner: Learner, journal: Journal, who: Mapping[str, str], folder: Path) -> None:
    """All ranks gather, rank 0 writes; all go on or end together."""
    comm = journal.comm
    ledger = journal.gather()
    snapshot = snapshots.take(learner, run.steps, run.state(config, who), ledger.to_bytes(), comm)

    def write() -> None:
        if comm.rank == 0:
            checkpoints.save(folder, snapshot)
            journal.commit(run.steps)
            checkpoints.prune(folder, config.train.keep_checkpoints)

    _all_or_none(journal.flush, comm)  # on every rank before the checkpoint that vouches for it
    _all_or_none(write, comm)
    run.checkpoint = folder / f"step-{run.steps:09d}"


def _all_or_none(work: Callable[[], None], comm: Comm) -> None:
    """Does `work` on each rank; where it fails on one, every rank raises that UserError."""
    problem = b""
    try:
        work()
    except UserError as error:
        problem = str(error).encode()
    for message in gather_bytes(problem, comm):
        if message:
            raise UserError(message.decode())


def _preparer(config: Config, device: torch.device) -> Prepare:
    from swav_platform.images import photometric

    def to_device(array: Any) -> Tensor:
        with warnings.catch_warnings():  # rows lie in shared memory that can't be written to, and nobody does
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            return torch.from_numpy(array).to(device, non_blocking=True)

    if config.data.photometric == "worker":
        return lambda row: [photometric.normalise(to_device(views)) for views in row.views]
    return lambda row: [photometric.apply(to_device(v), torch.tensor(p)) for v, p in zip(row.views, row.params, strict=True)]
