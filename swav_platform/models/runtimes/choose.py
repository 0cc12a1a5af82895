"""Opens a runtime by name, shows that it computes what the package computed, and finds the fastest for `auto`."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from swav_platform import __version__
from swav_platform.atomic import write_text
from swav_platform.data.storage.cache import cache_folder
from swav_platform.errors import UsageError, UserError
from swav_platform.models.exports.onnx import write_onnx
from swav_platform.models.exports.stored import stored
from swav_platform.models.package import Package, package_digest
from swav_platform.models.reference import load_reference, probe
from swav_platform.models.runtimes.eager import bf16_runtime, compiled_runtime, has_bf16, torch_runtime
from swav_platform.models.runtimes.onnx_session import onnx_runtime
from swav_platform.models.runtimes.runtime import PARITY, Runtime, cosines

log = logging.getLogger("swav")

NAMES = ("auto", "torch", "compile", "bf16", "onnx", "int8")
FAST = 0.002  # seconds for an image: decoding takes longer, so that a faster runtime would not show
BATCH = 8  # images in one call while measuring
SECONDS = 1.0  # for measuring one runtime


class Wanted(NamedTuple):
    """What to open. The folder's package must be loaded on the device already."""

    folder: Path
    package: Package
    digest: str  # of the package
    device: str
    threads: int | None

    @property
    def size(self) -> int:
        return int(self.package.meta["input_size"])


def check_choice(name: str, device: str) -> None:
    """Raises UsageError for a runtime or device that this machine does not have. Loads nothing."""
    if name not in NAMES:
        raise UsageError(f"There is no runtime {name!r}. Choose one of {', '.join(NAMES)}.")
    try:
        kind = torch.device(device).type
    except RuntimeError:
        raise UsageError(f"There is no device {device!r}. Choose cpu, cuda or cuda:NUMBER.") from None
    if kind == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"The device {device} can't be used: torch finds no GPU here. Choose --device cpu.")
    if kind != "cpu" and name in ("onnx", "int8"):
        raise UsageError(f"The runtime {name} runs on CPUs only. Choose auto, torch, compile or bf16 for {device}.")
    if kind == "cpu" and name == "compile":
        raise UsageError("The runtime compile is for GPUs. Choose auto, torch, bf16, onnx or int8 on a CPU.")
    if name == "bf16" and not has_bf16(device):
        raise UsageError(f"The device {device} computes no bfloat16. Choose the runtime auto or torch.")


def open_runtime(
    folder: Path,
    package: Package,
    name: str = "torch",
    *,
    device: str = "cpu",
    threads: int | None = None,
    allow_int8: bool = False,
) -> Runtime:
    """Opens a runtime for the encoder of `package`, which was loaded from `folder` and is moved to `device`.

    name: one of NAMES. auto takes the fastest whose parity holds, and int8 among them only with `allow_int8`.
    threads: of the runtime; torch's number if None. Raises UsageError as check_choice, UserError if parity does not hold.
    """
    check_choice(name, device)
    package.encoder.to(device)
    package.projection.to(device)
    wanted = Wanted(folder, package, package_digest(folder), device, threads)
    if name == "auto":
        return _fastest(wanted, allow_int8)
    return _verified(name, wanted)


def _verified(name: str, wanted: Wanted) -> Runtime:
    """An opened runtime that has shown its parity: to the package's reference, or to the int8 export's own."""
    runtime = _OPEN[name](wanted)
    images, expected = probe(wanted.size), None
    if name == "int8" and (export := stored(wanted.folder, "int8", wanted.digest)):
        expected = export.probe
    elif (reference := load_reference(wanted.folder)) is not None:
        images, expected = reference
    if expected is None:
        expected = torch_runtime(wanted.package.encoder)(images)
    check_features(runtime(images), expected, PARITY[runtime.precision], f"The runtime {name}")
    return runtime


def check_features(found: np.ndarray, expected: np.ndarray, parity: float, who: str) -> None:
    """Raises UserError unless both have one shape, `found` is finite and each cosine is at least `parity`."""
    if found.shape != expected.shape:
        raise UserError(f"{who} computes features of shape {list(found.shape)} instead of {list(expected.shape)}.")
    if not np.isfinite(found).all():
        raise UserError(f"{who} computes features that are not finite. The weights or the library are damaged.")
    if (lowest := float(cosines(found, expected).min())) < parity:
        raise UserError(
            f"{who} computes other features than the package's reference: the cosine is {lowest:.5f}, at least {parity} is "
            f"needed. The package or a library is damaged, or this CPU computes differently; use the runtime torch."
        )


def _onnx(wanted: Wanted) -> Runtime:
    export = stored(wanted.folder, "fp32", wanted.digest)
    path = export.path if export else _cached_onnx(wanted)
    return onnx_runtime(path, threads=wanted.threads)


def _cached_onnx(wanted: Wanted) -> Path:
    path = cache_folder() / "onnx" / f"{wanted.digest}-{__version__}.onnx"
    if not path.is_file():
        log.info("Exporting the encoder to ONNX (some seconds, once for this machine).")
        write_onnx(wanted.package.encoder, wanted.size, path)
    return path


def _int8(wanted: Wanted) -> Runtime:
    export = stored(wanted.folder, "int8", wanted.digest)
    if export is None:
        raise UsageError(
            f"The package {wanted.folder} has no int8 encoder. Create it with `swav export RUN --to onnx --int8`, "
            f"or choose another runtime."
        )
    return onnx_runtime(export.path, precision="int8", threads=wanted.threads, variant=export.variant)


_OPEN: dict[str, Callable[[Wanted], Runtime]] = {
    "torch": lambda wanted: torch_runtime(wanted.package.encoder),
    "compile": lambda wanted: compiled_runtime(wanted.package.encoder),
    "bf16": lambda wanted: bf16_runtime(wanted.package.encoder),
    "onnx": _onnx,
    "int8": _int8,
}


def _fastest(wanted: Wanted, allow_int8: bool) -> Runtime:
    """The fastest runtime of this machine for this package. The choice is kept in the cache folder."""
    memory = cache_folder() / "runtimes" / f"{_machine(wanted, allow_int8)}.json"
    with suppress(OSError, ValueError, KeyError, UserError):
        return _verified(json.loads(memory.read_bytes())["runtime"], wanted)
    best = _verified("torch", wanted)
    rates = {"torch": _rate(best, wanted.size)}
    if rates["torch"] < 1 / FAST:
        log.info("Measuring the runtimes of this machine (some seconds, once).")
        for name in _candidates(wanted.device, allow_int8, wanted):
            try:
                runtime = _verified(name, wanted)
                rates[name] = _rate(runtime, wanted.size)
            except UserError as error:
                log.info(f"The runtime {name} is not used: {error}")
                continue
            best = runtime if rates[name] > max(rate for other, rate in rates.items() if other != name) else best
        log.info(f"Runtime {best.name}: " + ", ".join(f"{name} {rate:.0f}" for name, rate in rates.items()) + " images/s.")
    with suppress(UserError):  # without a cache it measures again next time
        write_text(memory, json.dumps({"runtime": best.name, "images_per_second": {k: round(v, 1) for k, v in rates.items()}}))
    return best


def _candidates(device: str, allow_int8: bool, wanted: Wanted) -> list[str]:
    names = ["bf16"] if has_bf16(device) else []
    if device.startswith("cuda"):
        return [*names, "compile"]
    has_int8 = allow_int8 and (wanted.folder / "onnx" / "int8.json").is_file()
    return [*names, "onnx", *(["int8"] if has_int8 else [])]


def _rate(runtime: Runtime, size: int) -> float:
    """Images per second, of the fastest of several calls: other programs of the machine slow calls down, nothing speeds them up."""
    images = np.concatenate([probe(size)] * (BATCH // len(probe(size))))
    runtime(images)
    best, end = float("inf"), time.perf_counter() + SECONDS
    for _ in range(50):
        started = time.perf_counter()
        runtime(images)
        best = min(best, time.perf_counter() - started)
        if time.perf_counter() > end:
            break
    return len(images) / best


def _machine(wanted: Wanted, allow_int8: bool) -> str:
    """Identifies what the choice depends on: the package, the processor, threads and versions."""
    import onnxruntime

    int8 = wanted.folder / "onnx" / "int8.json"
    gpu = torch.cuda.get_device_name(wanted.device) if wanted.device.startswith("cuda") else ""
    facts = (
        wanted.digest,
        int8.read_text() if allow_int8 and int8.is_file() else "",
        wanted.device,
        gpu,
        _cpu(),
        os.cpu_count(),
        wanted.threads or torch.get_num_threads(),
        (__version__, torch.__version__, onnxruntime.__version__),
    )
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:24]


def _cpu() -> str:
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))}))
    return platform.processor()
