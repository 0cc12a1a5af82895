"""Process-wide torch settings, and the transfer of rows to the device."""

from __future__ import annotations

import os
import warnings
from typing import Any

import torch
from torch import Tensor

from swav_platform.config import Config
from swav_platform.errors import UsageError
from swav_platform.malloc import keep_freed
from swav_platform.training.collectives import available_cores
from swav_platform.training.passes import Prepare


def chosen(wanted: str, gpus: int, workers: int, where: str) -> str:
    """The device of `train.device`: "cuda" or "cpu". gpus: those of `where`, a place named in messages. workers: the fewest of the run.

    Raises UsageError instead of training on CPUs where GPUs were asked for, or exist but are too few.
    """
    if wanted == "cpu" or (wanted == "auto" and gpus == 0):
        return "cpu"
    if gpus >= workers:
        return "cuda"
    if wanted == "cuda":
        raise UsageError(
            f"train.device=cuda needs a GPU for each of {workers} workers, but {where} has {gpus}. Add GPUs, lower train.workers, or set "
            f"train.device=cpu."
        )
    raise UsageError(
        f"{where[0].upper()}{where[1:]} has {gpus} GPUs for {workers} workers (train.workers), and a run uses either GPUs or CPUs. Set "
        f"train.workers={gpus} or fewer, add GPUs, or set train.device=cpu."
    )


def resolved(config: Config, device: torch.device) -> Config:
    """The configuration with values in place of `auto`, for training on `device`."""
    train, gpu = config.train, device.type == "cuda"
    precision, compiles = train.precision, train.compile
    if precision == "auto":
        precision = "bf16" if gpu and torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    if compiles == "auto":
        across = config.model.normalisation == "step" and config.most_workers > 1  # its batch norms would break the graph
        compiles = gpu and not (across or config.model.activation_checkpointing or train.shard == "fsdp2")
        if compiles:
            from torch._dynamo import config as dynamo  # takes seconds

            dynamo.suppress_errors = True  # without a C compiler the encoder runs uncompiled
    return config.model_copy(update={"train": train.model_copy(update={"precision": precision, "compile": compiles})})


def here() -> torch.device:
    """The device that a run on this machine would use."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def set_torch(config: Config, device: torch.device, ranks: int) -> None:
    """Sets threads, kernels and memory of the process. ranks: of the run; Ray Train and torchrun say how many are on this machine.

    With `train.deterministic` torch uses deterministic kernels only. Without it cuDNN benchmarks its algorithms, because shapes are the
    same in every step. On a CPU the allocator keeps freed memory for the next step, as torch does on a GPU.
    """
    if device.type == "cpu":
        keep_freed(largest=2**30, total=2**31 - 1)
    torch.set_num_threads(config.train.threads or max(1, available_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", ranks))))
    if config.train.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it is first used
    torch.use_deterministic_algorithms(config.train.deterministic)
    torch.backends.cudnn.benchmark = not config.train.deterministic


def preparer(config: Config, device: torch.device) -> Prepare:
    """Returns a function that moves a row to the device as uint8 and converts it to the network's input there."""
    from swav_platform.images.views import photometric

    def moved(array: Any) -> Tensor:
        with warnings.catch_warnings():  # rows are in read-only shared memory, and nothing writes to them
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            tensor = torch.from_numpy(array)
        return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)

    if config.data.photometric == "worker":
        return lambda row: [photometric.normalise(moved(views)) for views in row.views]
    return lambda row: [photometric.apply(moved(v), torch.tensor(p)) for v, p in zip(row.views, row.params, strict=True)]
