"""What the service is told at its start."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

MIB = 2**20


@dataclass(frozen=True)
class Limits:
    """What one request, and all requests together, may ask for. Going over is an error of the client, or 503."""

    max_bytes: int = 20 * MIB  # of one image
    max_pixels: int = 64_000_000  # of one image, told by its header before anything is decoded
    max_items: int = 64  # images of one request
    max_body: int = 128 * MIB  # bytes of one request
    max_held: int = 512 * MIB  # bytes of the bodies that are held at one time
    max_pending: int = 256  # images that wait or are worked on at one time


@dataclass(frozen=True)
class ServiceSettings:
    """A model package, and the run's embeddings where clusters' members and neighbours are to be answered."""

    model: Path
    embeddings: Path | None = None  # folder with embeddings.parquet
    host: str = "127.0.0.1"
    port: int = 8000  # 0: any free port
    limits: Limits = field(default_factory=Limits)
    threads: int | None = None  # of torch; its own choice when absent
    decoders: int = 2  # threads that decode
    max_batch: int = 32  # images that go through the model together
    max_wait: float = 0.003  # seconds that an image waits for company
