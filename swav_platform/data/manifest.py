"""The manifest of an index: what a process holds of it, O(shards)."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from swav_platform.errors import UserError

FORMAT = 1
GROUP = 8192  # lines of a row group


@dataclass(frozen=True)
class Shard:
    """A tar. `mtime` in ns; `problems`: what was skipped in it, by reason."""

    url: str
    size: int
    mtime: int
    samples: int
    problems: dict[str, int]


@dataclass(frozen=True)
class ShardFile:
    """A tar before anything of it was read; equal ones were not touched in between. `mtime` in ns."""

    url: str
    size: int
    mtime: int


def shard_files(shards: Sequence[str]) -> list[ShardFile]:
    """Raises UserError for a shard that is not there."""
    if not shards:
        raise UserError("There are no shards to index: name at least one tar.")
    return [_shard_file(os.path.abspath(shard)) for shard in shards]


def _shard_file(url: str) -> ShardFile:
    try:
        status = os.stat(url)
    except OSError as error:
        raise UserError(f"The shard {url} can't be read ({error.strerror}): check that it exists and may be read.") from None
    return ShardFile(url, status.st_size, status.st_mtime_ns)


def read_manifest(path: Path) -> dict[str, Any] | None:
    """The manifest of the index in a folder, None if there is none. Raises UserError for one that can't be read."""
    try:
        manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"The index in {path} can't be read ({error}): remove the folder and index again.") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise UserError(f"The index in {path} is of a format that this version does not read: remove the folder and index again.")
    return manifest


def reusable(out: Path, shards: list[ShardFile], label: str | None) -> dict[str, Any] | None:
    """The manifest in `out` if it was made of the same unchanged shards."""
    try:
        manifest = read_manifest(out)
    except UserError:
        return None  # it is written anew
    if manifest is None or manifest["label"] != label:
        return None
    same = [(s["url"], s["size"], s["mtime"]) for s in manifest["shards"]] == [(s.url, s.size, s.mtime) for s in shards]
    return manifest if same and all((out / part["file"]).is_file() for part in manifest["parts"]) else None
