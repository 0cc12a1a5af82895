"""Settings of the service. Imports nothing heavy, so that the command line and tests can build them quickly."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

MIB = 2**20


@dataclass(frozen=True)
class Limits:
    """Limits of one request, and of all requests together. Exceeding one is a client error (4xx), or 503."""

    max_bytes: int = 20 * MIB  # of one image
    max_pixels: int = 64_000_000  # of one image, from its header
    max_items: int = 64  # images in one request
    max_body: int = 128 * MIB  # bytes of one request
    max_held: int = 144 * MIB  # bytes of all request bodies in memory
    max_pending: int = 256  # images queued or in progress
    max_age: float = 10.0  # seconds that a new image may have to wait for its turn


@dataclass(frozen=True)
class Source:
    """A model to serve, and the embeddings for cluster members and neighbours.

    place: the folder or URL of a package or of a run, or an MLflow URI such as models:/NAME@alias. embeddings: the folder of a
    set, or a folder of sets named by their models' digests; a run's own set if None.
    """

    place: str
    embeddings: Path | None = None
    name: str | None = None  # by which requests choose it; the package's own name if None
    tracking_uri: str | None = None
    index: Path | str | None = None  # neighbour index of the set, or pgvector://…; SET-neighbours, if there is one, if None
    weight: float = 0.0  # share of the requests that name no model, for all but the first source


@dataclass(frozen=True)
class ServiceSettings:
    """What is served, where and how."""

    model: Path | str  # place of the first source
    embeddings: Path | None = None
    index: Path | str | None = None
    tracking_uri: str | None = None
    others: tuple[Source, ...] = ()
    poll: float = 0.0  # seconds between two looks for new versions of the models; 0: only when asked
    host: str = "127.0.0.1"
    port: int = 8000  # 0: any free port
    limits: Limits = field(default_factory=Limits)
    threads: int | None = None  # torch threads; None: torch's default
    runtime: str = "torch"  # of models/runtimes; auto measures
    allow_int8: bool = False  # whether auto may take int8
    device: str = "cpu"
    workers: int = 1  # processes that share the port
    alone: bool = True  # whether no other process answers from the same models and sets
    decoders: int = 0  # decoding threads; 0: as many as cores
    max_batch: int = 32  # most images in one forward pass; fewer if that is as fast
    drain: float = 5.0  # seconds that a replaced model stays for requests that began with it
    cache_bytes: int = 64 * MIB  # of vectors by the hash of their image, for each model; 0: none
    keys: Path | None = None  # file of API keys; None: those of SWAV_API_KEYS, else no keys are asked for
    url_hosts: tuple[str, ...] = ()  # from which images are fetched by URL, as of --allow-urls; none by default
    root_path: str = ""  # prefix of all paths, as a gateway publishes them
    origins: tuple[str, ...] = ()  # of pages that may ask from browsers; none by default
    keep_alive: int = 75  # seconds that an idle connection stays open: longer than the 60 s of common balancers
    notice: float = 0.0  # seconds at the end in which /readyz says 503 and requests are still answered
    max_wait: float = 0.003  # seconds that the first image of a batch waits for more

    @property
    def sources(self) -> tuple[Source, ...]:
        return (Source(str(self.model), self.embeddings, tracking_uri=self.tracking_uri, index=self.index), *self.others)
