"""Runtimes of ONNX Runtime on CPUs."""

from __future__ import annotations

import functools
import os
from pathlib import Path

import numpy as np
import torch

from swav_platform.errors import UserError
from swav_platform.models.runtimes.runtime import Runtime, buckets

INPUT, OUTPUT = "images", "features"


def onnx_runtime(path: Path, *, precision: str = "fp32", threads: int | None = None, variant: str = "") -> Runtime:
    """The encoder in the ONNX file `path`, on `threads` threads (default: as many as torch uses).

    Raises UserError if the file can't be loaded.
    """
    import onnxruntime

    _share_one_arena()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or torch.get_num_threads()
    options.log_severity_level = 3
    options.add_session_config_entry("session.use_env_allocators", "1")
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # waiting threads leave the cores to decoding
    try:
        session = onnxruntime.InferenceSession(os.fspath(path), options, providers=["CPUExecutionProvider"])
        names = [[node.name for node in nodes] for nodes in (session.get_inputs(), session.get_outputs())]
        if names != [[INPUT], [OUTPUT]]:
            raise ValueError(f"its inputs and outputs are {names}")
    except Exception as error:  # onnxruntime's exceptions have no common base but Exception
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{path} can't be loaded by ONNX Runtime ({reason}). Export it again with `swav export`.") from error

    def function(images: np.ndarray) -> np.ndarray:
        images = np.ascontiguousarray(images, np.float32)
        parts = [session.run([OUTPUT], {INPUT: images[part]})[0] for part in buckets(len(images))]
        return np.concatenate(parts)

    return Runtime("int8" if precision == "int8" else "onnx", precision, "cpu", function, variant)


@functools.cache
def _share_one_arena() -> None:
    """One arena for all sessions of the process, which grows by what is asked for. By default each doubles its own."""
    import onnxruntime

    memory = onnxruntime.OrtMemoryInfo("Cpu", onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, onnxruntime.OrtMemType.DEFAULT)
    onnxruntime.create_and_register_allocator(memory, onnxruntime.OrtArenaCfg({"arena_extend_strategy": 1}))
