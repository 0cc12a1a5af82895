"""Settings of the data: shards, the stream of rows, and which images are accepted."""

from __future__ import annotations

from typing import Literal

from pydantic import field_validator, model_validator

from swav_platform.config.setting import REQUIRED, Section, setting

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
"""Image formats that can be accepted. No setting enables another format (docs/security.md)."""

_SHORT = {"JPG": "JPEG", "TIF": "TIFF"}


SECONDS, SECONDS_PER_PIXEL = 1.5, 40e-9
BYTES, BYTES_PER_PIXEL = 640 * 2**20, 16
"""Limits of decoding up to the default of max_pixels; beyond it, what the costliest format takes for a pixel."""


class ImagePolicy(Section):
    """Which images are accepted. Every other image becomes an outcome in the ledger."""

    min_side: int = setting(16, "smallest height and width", unit="pixels", ge=1)
    max_pixels: int = setting(64_000_000, "images with this many pixels or more are refused", unit="pixels", ge=1)
    max_bytes: int = setting(64 * 2**20, "largest encoded image", unit="bytes", ge=1)
    max_aspect: float = setting(20.0, "largest ratio of the long side to the short side", ge=1)
    truncated: Literal["reject", "accept"] = setting("reject", "what happens to images whose data ends early")
    formats: tuple[str, ...] = setting(FORMATS, "accepted formats")
    levels: Literal["full", "stretch"] | tuple[float, float] = setting(
        "full",
        "values of black and white in images of more than 8 bits: `full`, the range of the type; `stretch`, the image's own minimum "
        "and maximum; or [low, high]",
        newer=True,
    )
    blank: Literal["accept", "reject"] = setting(
        "accept", "what happens to images that are nearly black, nearly white or of one colour", newer=True
    )
    max_decode_seconds: float | None = setting(
        None,
        "images that would take longer to decode are refused; null: 1.5, and more with a larger max_pixels",
        unit="seconds",
        newer=True,
        gt=0,
    )
    max_decode_bytes: int | None = setting(
        None,
        "images that would need more memory to decode are refused; null: 640 MiB, and more with a larger max_pixels",
        unit="bytes",
        newer=True,
        ge=2**24,
    )

    @property
    def decode_seconds(self) -> float:
        """Limit of the estimated CPU time of decoding."""
        larger = self.max_pixels > ImagePolicy.model_fields["max_pixels"].default
        return self.max_decode_seconds or max(SECONDS, larger * self.max_pixels * SECONDS_PER_PIXEL)

    @property
    def decode_bytes(self) -> int:
        """Limit of the estimated memory of decoding."""
        larger = self.max_pixels > ImagePolicy.model_fields["max_pixels"].default
        return self.max_decode_bytes or max(BYTES, larger * self.max_pixels * BYTES_PER_PIXEL)

    @model_validator(mode="after")
    def _range_of_levels(self) -> ImagePolicy:
        if not isinstance(self.levels, str) and not self.levels[0] < self.levels[1]:
            raise ValueError(f"levels must be [low, high] with low < high, got {list(self.levels)}")
        return self

    @field_validator("formats")
    @classmethod
    def _known_formats(cls, formats: tuple[str, ...]) -> tuple[str, ...]:
        """Accepts any case and the usual extensions. Returns the order of FORMATS, so that one choice has one digest."""
        accepted = {_SHORT.get(name.strip().upper(), name.strip().upper()) for name in formats}
        if not accepted:
            raise ValueError(f"at least one format is required, of {', '.join(FORMATS)}")
        if not accepted <= set(FORMATS):
            raise ValueError(f"unknown format {', '.join(sorted(accepted - set(FORMATS)))}; formats are {', '.join(FORMATS)}")
        return tuple(name for name in FORMATS if name in accepted)


class Source(Section):
    """One of several data sets that are mixed."""

    pattern: str = setting(REQUIRED, "shards of the source: a path, glob, range or URL", changes_results="index")
    weight: float = setting(1.0, "share of the positions, in proportion to the other weights", changes_results="index", gt=0)


class Data(Section):
    sources: tuple[str | Source, ...] = setting(
        (), "shard patterns, or mappings with `pattern` and `weight` to mix data sets", changes_results="index"
    )
    samples_per_epoch: int | None = setting(
        None, "length of an epoch for train.epochs; all samples when null", unit="samples", newer=True, ge=1
    )
    one_pass: bool = setting(False, "use no sample twice: the run ends before the data does", newer=True)
    row_size: int = setting(32, "positions of a row; a row is read, trained and counted as a whole", unit="positions", ge=1)
    block: int = setting(16, "consecutive samples that are read together", unit="samples", ge=1)
    window: int = setting(64, "blocks that are shuffled together", unit="blocks", ge=1)
    images: ImagePolicy = setting(ImagePolicy(), "which images are accepted")
    photometric: Literal["worker", "device"] = setting(
        "device", "where colours change: `worker` rounds the changed views to 8 bits"
    )
    streams: int = setting(1, "parallel pipelines that make rows; fixed for the run", newer=True, ge=1)
    index: str | None = setting(None, "folder of the index; built from data.sources when null", changes_results="index")
    exclude: str | None = setting(
        None, "file of samples to leave out of the index: `KEY` or `SHARD<tab>KEY` per line", changes_results="index"
    )
    members: tuple[str, ...] = setting(
        (), "extensions of the images to use, such as `jpg` or `*.png`; all images when empty", changes_results="index"
    )
    missing: Literal["stop", "skip"] = setting(
        "stop",
        "while shards are searched: a listed one that does not exist stops, or is left out of the index",
        changes_results="index",
    )
    allow_pipe: bool = setting(
        False, "run `pipe:COMMAND` sources, which are shell commands, also those of an index", changes_results="no"
    )
    tasks: int | Literal["auto"] = setting(
        2,
        "tasks that make rows at the same time, besides one spare task per stream; `auto` for one per core that training leaves",
        changes_results="no",
    )
    segment: int = setting(1024, "length of a segment", unit="rows", changes_results="no", ge=1)
    node_labels: dict[str, str] = setting(
        {}, "labels of the Ray nodes that may run data tasks; any node when empty", changes_results="no"
    )
    sample_log: str | None = setting(None, "folder of the sample log; no log when null", changes_results="no")
    storage_patience: float = setting(
        1800.0, "how long to wait for a storage that fails, before the run stops", unit="seconds", changes_results="no", ge=0
    )
    missing_shards: Literal["stop", "replace"] = setting(
        "stop",
        "while a run reads: a shard of the index that is gone or changed, while others answer, stops the run, or is replaced by other samples",
        changes_results="no",
    )
    max_quarantine_fraction: float = setting(
        0.5, "the run stops when a larger share of its images is unusable", changes_results="no", gt=0, le=1
    )

    @field_validator("tasks")
    @classmethod
    def _some_tasks(cls, tasks: int | str) -> int | str:
        if isinstance(tasks, int) and tasks < 1:
            raise ValueError("must be 1 or more, or auto")
        return tasks

    def tasks_of(self, cores: int) -> int:
        """Data tasks where `cores` are free for them."""
        return max(1, cores if self.tasks == "auto" else min(self.tasks, cores))

    @property
    def patterns(self) -> tuple[str, ...]:
        """Shard patterns of all sources."""
        return tuple(source if isinstance(source, str) else source.pattern for source in self.sources)

    @property
    def mixed(self) -> bool:
        """Whether sources have weights."""
        return any(not isinstance(source, str) for source in self.sources)
