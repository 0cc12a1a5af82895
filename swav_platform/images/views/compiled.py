"""Compiles kernels when their module is imported, once per machine.

A kernel declares its types, so numba compiles it, or reads it from its cache, when it is defined. The cache is a folder in the
user's home, named by numba's version, the CPU and the sources of all kernels. Numba itself checks only the kernel's own file, not the
functions that it calls.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import llvmlite.binding
import numba
from numba.core import config as numba_config

_SOURCES = ("colours.py", "colour_kernel.py", "compiled.py", "params.py", "resize_kernel.py")

# Sums keep their written order, so that every SIMD width gives the same pixels; 1 / 0 is inf.
_OPTIONS: dict[str, Any] = {"fastmath": {"contract", "nsz"}, "error_model": "numpy"}


def inlined(function: Callable[..., Any]) -> Callable[..., Any]:
    """A part of kernels, compiled with each kernel that calls it."""
    part: Callable[..., Any] = numba.njit(**_OPTIONS)(function)
    return part


def kernel(signature: str, *, neighbours: bool = False) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Compiles a function for these types now, or reads it from the cache. It runs without the GIL.

    neighbours: whether adjacent statements are vectorised too (SLP). That prevents the vectorising of some loops.
    """

    def compile_(function: Callable[..., Any]) -> Callable[..., Any]:
        folder = cache_folder()
        with _settings(CACHE_DIR=str(folder or ""), SLP_VECTORIZE=int(neighbours)):
            return numba.njit(signature, nogil=True, cache=folder is not None, **_OPTIONS)(function)

    return compile_


def cache_folder() -> Path | None:
    """The folder of compiled kernels; None if the user has no writable folder, so that each process compiles."""
    here = Path(__file__).parent
    sources = hashlib.sha256(b"".join((here / name).read_bytes() for name in _SOURCES)).hexdigest()[:12]
    features = llvmlite.binding.get_host_cpu_features().flatten()
    cpu = hashlib.sha256(f"{llvmlite.binding.get_host_cpu_name()} {features}".encode()).hexdigest()[:8]
    try:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        folder = home / "swav-platform" / f"numba-{numba.__version__}-{cpu}-{sources}"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # RuntimeError: a user without a home
        return None
    return folder if os.access(folder, os.W_OK) else None


@contextmanager
def _settings(**values: Any) -> Iterator[None]:
    """Sets numba's process-wide settings while a kernel is compiled, and restores them."""
    before = {name: getattr(numba_config, name) for name in values}
    try:
        for name, value in values.items():
            setattr(numba_config, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(numba_config, name, value)
