"""Checks the machine: CPU, memory, shared memory, disk, and the Ray and MLflow that environment variables select."""

from __future__ import annotations

import os
import platform
import resource
import shutil
import socket
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from swav_platform.cli.doctor_packages import Findings

GIB = 2**30
_FLAGS = Path("/proc/cpuinfo")
_SHM = Path("/dev/shm")
_RAY_ADDRESS_FILE = Path("/tmp/ray/ray_current_cluster")  # Ray writes the address of a cluster started on this machine here
_PATIENCE = 2.0  # seconds for an address to answer


def machine() -> Findings:
    """Facts `cpu` and `machine`; problems that make Ray or a run fail or slow."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory, shm = _memory(), _free(_SHM)
    disk = _free(Path.cwd())
    files = resource.getrlimit(resource.RLIMIT_NOFILE)
    facts = {
        "cores": cores,
        "memory_gib": _gib(memory),
        "shm_gib": _gib(shm),
        "disk_free_gib": _gib(disk),
        "open_files": {"soft": files[0], "hard": files[1]},
    }
    found = Findings(facts={"cpu": cpu_level(), "machine": facts})
    if cores < 2:
        found.problems.append(("only one CPU core: training would leave none for data tasks", "use a machine with two or more"))
    if memory is not None and memory < 3 * GIB:
        found.problems.append((f"only {memory / GIB:.1f} GiB of memory", "the demo needs 4 GiB, larger runs 8 GiB or more"))
    if shm is not None and shm < GIB:
        remedy = "in a container: --shm-size 4g (compose: shm_size)"
        found.problems.append((f"/dev/shm has {shm / GIB:.2f} GiB: Ray's object store would use the disk", remedy))
    if disk is not None and disk < 5 * GIB:
        found.problems.append((f"only {disk / GIB:.1f} GiB free in {Path.cwd()}", "free disk space, or work in another folder"))
    if files[1] != resource.RLIM_INFINITY and files[1] < 8192:
        found.problems.append((f"at most {files[1]} open files are allowed", "raise the hard limit (ulimit -Hn) to 65536"))
    return found


def services() -> Findings:
    """Facts `ray_cluster` and `tracking`: the addresses in the environment, and whether they answer."""
    found = Findings()
    ray, tracking = os.environ.get("RAY_ADDRESS"), os.environ.get("MLFLOW_TRACKING_URI")
    local = _local_cluster()
    found.facts["ray_cluster"] = {
        "address": ray,
        "answers": _answers(ray, "/api/gcs_healthz") if ray else None,
        "local": local,
    }
    found.facts["tracking"] = {"uri": tracking, "answers": _answers(tracking, "/health") if tracking else None}
    if found.facts["ray_cluster"]["answers"] is False:
        remedy = "start it, or unset RAY_ADDRESS to use a local Ray"
        found.problems.append((f"Ray at {ray} (RAY_ADDRESS) does not answer", remedy))
    if found.facts["tracking"]["answers"] is False:
        remedy = "start it, or unset MLFLOW_TRACKING_URI to track in SQLite in the folder of the runs"
        found.problems.append((f"MLflow at {_without_password(tracking or '')} (MLFLOW_TRACKING_URI) does not answer", remedy))
    found.facts["tracking"]["uri"] = _without_password(tracking) if tracking else None
    return found


def cpu_level() -> str | None:
    """The widest vector instructions: avx512, avx2, sse4, neon; None if unknown."""
    if platform.machine() in ("aarch64", "arm64"):
        return "neon"
    try:
        words = set(_FLAGS.read_text().split())
    except OSError:
        return None
    for level, flag in (("avx512", "avx512bw"), ("avx2", "avx2"), ("sse4", "sse4_1")):
        if flag in words:
            return level
    return None


def nvidia_driver() -> bool:
    return Path("/proc/driver/nvidia/version").exists()


def _local_cluster() -> str | None:
    """Address of a Ray that was started on this machine and answers."""
    try:
        address = _RAY_ADDRESS_FILE.read_text().strip()
    except OSError:
        return None
    return address if _connects(address) else None


def _memory() -> int | None:
    """Bytes that this process may use: the machine's, or the container's if that is less."""
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return None
    for limit in (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")):
        try:
            total = min(total, int(limit.read_text()))
        except (OSError, ValueError):
            continue
    return total


def _free(path: Path) -> int | None:
    try:
        return shutil.disk_usage(path).free
    except OSError:
        return None


def _gib(size: int | None) -> float | None:
    return None if size is None else round(size / GIB, 1)


def _answers(address: str, path: str) -> bool | None:
    """None for values that are not the address of a server (sqlite:///…, a folder, auto, local)."""
    if address.startswith(("http://", "https://")):
        try:
            with urllib.request.urlopen(address.rstrip("/") + path, timeout=_PATIENCE) as response:
                return bool(response.status == 200)
        except urllib.error.HTTPError:
            return True  # the server answers, for example with 401
        except (OSError, ValueError):
            return False
    if address.startswith("ray://") or ("://" not in address and ":" in address):
        return _connects(address.removeprefix("ray://"))
    return None


def _connects(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=_PATIENCE):
            return True
    except (OSError, ValueError):
        return False


def _without_password(uri: str) -> str:
    parts: Any = urlsplit(uri)
    return uri.replace(f":{parts.password}@", ":***@") if parts.password else uri
