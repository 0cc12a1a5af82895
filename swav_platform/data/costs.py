"""What it took to make a row: for metrics, never for training."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Costs:
    """Of one row, in its data task, by the attempt that made it. Equal rows may differ in it."""

    read_seconds: float = 0.0  # until the bytes were there; the first row of a window reads for all
    decode_seconds: float = 0.0
    views_seconds: float = 0.0  # the rest: crops, and photometrics where the data task does them
    read_bytes: float = 0.0  # encoded bytes of the images tried
