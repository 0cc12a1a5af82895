"""What a run sets for torch as a whole, and the way of a row onto its device."""

from __future__ import annotations

import os
import warnings
from typing import Any

import torch
from torch import Tensor

from swav_platform.config import Config
from swav_platform.malloc import keep_freed
from swav_platform.training.collectives import available_cores
from swav_platform.training.passes import Prepare


def set_torch(config: Config, device: torch.device) -> None:
    """Threads, and with `train.deterministic` only kernels that give the same bits again.

    Without it cuDNN tries its algorithms and keeps the fastest: shapes are the same in every step. For the same reason a CPU's
    memory stays with the process from step to step, as torch itself keeps a GPU's.
    """
    if device.type == "cpu":
        keep_freed(largest=2**30, total=2**31 - 1)
    torch.set_num_threads(config.train.threads or max(1, available_cores() // config.train.workers))
    if config.train.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it is first used
    torch.use_deterministic_algorithms(config.train.deterministic)
    torch.backends.cudnn.benchmark = not config.train.deterministic


def preparer(config: Config, device: torch.device) -> Prepare:
    """Rows to the device as bytes; there they become what the network takes."""
    from swav_platform.images.views import photometric

    def moved(array: Any) -> Tensor:
        with warnings.catch_warnings():  # rows lie in shared memory that can't be written to, and nobody does
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            tensor = torch.from_numpy(array)
        return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)

    if config.data.photometric == "worker":
        return lambda row: [photometric.normalise(moved(views)) for views in row.views]
    return lambda row: [photometric.apply(moved(v), torch.tensor(p)) for v, p in zip(row.views, row.params, strict=True)]
