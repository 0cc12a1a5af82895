"""Runtimes of torch: eager, compiled, and bfloat16."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from swav_platform.models.runtimes.runtime import Runtime, buckets


def torch_runtime(encoder: nn.Module) -> Runtime:
    """Eager torch in channels-last layout, on the device where the encoder is, also after it moves."""
    encoder.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Runtime("torch", "fp32", str(_device(encoder)), lambda images: _run(encoder, images, torch.float32))


def bf16_runtime(encoder: nn.Module) -> Runtime:
    """A copy of the encoder in bfloat16. Sums inside of a layer are float32 on CPUs with AVX-512 BF16 or AMX, and on GPUs."""
    reduced = copy.deepcopy(encoder).eval().to(torch.bfloat16).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Runtime("bf16", "bf16", str(_device(encoder)), lambda images: _run(reduced, images, torch.bfloat16))


def compiled_runtime(encoder: nn.Module) -> Runtime:
    """torch.compile with one program per batch size of `buckets`."""
    encoder.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    program = torch.compile(encoder, dynamic=False)

    def function(images: np.ndarray) -> np.ndarray:
        return np.concatenate([_run(program, images[part], torch.float32) for part in buckets(len(images))])

    return Runtime("compile", "fp32", str(_device(encoder)), function)


def has_bf16(device: str) -> bool:
    """Whether bfloat16 is computed by hardware. Emulation is slower than float32."""
    if device.startswith("cuda"):
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def _device(encoder: nn.Module) -> torch.device:
    return next(encoder.parameters()).device


def _run(encoder: Callable[[Tensor], Tensor], images: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    device = next(encoder.parameters()).device  # type: ignore[attr-defined]
    with torch.inference_mode():
        pixels = torch.from_numpy(images).to(device, dtype, non_blocking=True).contiguous(memory_format=torch.channels_last)
        features: np.ndarray = encoder(pixels).float().cpu().numpy()
        return features
