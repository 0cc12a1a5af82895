"""CPU time of this process and its decoding children."""

from __future__ import annotations

import os
import resource
import time
from pathlib import Path

from swav_platform.images.decoding import confined


def cpu_seconds() -> float:
    """CPU seconds so far, independent of other programs on the machine. A running child's time has a resolution of 10 ms."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    ticks = 0
    child = getattr(confined._here, "child", None)
    if child is not None:
        fields = Path(f"/proc/{child._process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        ticks = int(fields[11]) + int(fields[12])
    return time.process_time() + ended.ru_utime + ended.ru_stime + ticks / os.sysconf("SC_CLK_TCK")
