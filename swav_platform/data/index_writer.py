"""Writing an index: aside, then moved into its place."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from itertools import accumulate
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from swav_platform.data.manifest import FORMAT, GROUP, Shard, ShardFile
from swav_platform.data.shard import SCHEMA, read_shard
from swav_platform.errors import UserError

_PART = 2**20  # lines after which a new part begins, at the next shard


def write_index(
    stats: list[ShardFile], out: Path, label: str | None, progress: Callable[[int, int], None] | None
) -> tuple[dict[str, Any], int]:
    """Index shards into `out`; returns the manifest and how many bytes of the shards were read.

    Raises UserError if no shard has a sample or the disk refuses; an index that was there is then still there.
    """
    digest = hashlib.sha256(f"{FORMAT} {label}".encode())
    shards: list[Shard] = []
    bytes_read = 0

    def tables() -> Iterator[pa.Table]:
        nonlocal bytes_read
        for number, stat in enumerate(stats):
            found = read_shard(stat.url, number, label)
            _add_to_digest(digest, stat, found.lines)
            shards.append(Shard(stat.url, stat.size, stat.mtime, found.lines.num_rows, found.skipped))
            bytes_read += found.bytes_read
            yield found.lines
            if progress is not None:
                progress(number + 1, len(stats))

    with _aside(out) as folder:
        parts = _write_parts(folder, tables())
        if not parts:
            raise UserError(_why_empty(shards))
        manifest = {
            "format": FORMAT,
            "digest": digest.hexdigest()[:32],
            "label": label,
            "samples": sum(shard.samples for shard in shards),
            "shards": [asdict(shard) for shard in shards],
            "parts": parts,
            "cumulative": [0, *accumulate(shard.samples for shard in shards)],
        }
        (folder / "manifest.json").write_text(json.dumps(manifest, indent=1), encoding="utf-8")
        _move_in(folder, out, parts)
    return manifest, bytes_read


@contextmanager
def _aside(out: Path) -> Iterator[Path]:
    """A folder inside `out` to write to, gone afterwards. Raises UserError for what the disk refuses."""
    folder = out / f"_building.{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
    except OSError as error:
        raise UserError(
            f"The index in {out} could not be written ({error.strerror or error}): free some space or name another folder."
        ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _move_in(folder: Path, out: Path, parts: list[dict[str, Any]]) -> None:
    """An index that was there ceases to exist before its parts are replaced: at no time do two mix."""
    (out / "manifest.json").unlink(missing_ok=True)
    for old in out.glob("part-*.parquet"):
        old.unlink()
    for part in parts:
        os.replace(folder / part["file"], out / part["file"])
    os.replace(folder / "manifest.json", out / "manifest.json")


def _write_parts(folder: Path, tables: Iterator[pa.Table]) -> list[dict[str, Any]]:
    """Write tables one after the other; a part ends with a shard, all row groups but a part's last are whole."""
    parts: list[dict[str, Any]] = []
    while (table := next(tables, None)) is not None:
        if not table.num_rows:
            continue
        name = f"part-{len(parts):05d}.parquet"
        with pq.ParquetWriter(folder / name, SCHEMA) as writer:
            samples, rest = table.num_rows, _write_whole_groups(writer, table)
            while samples < _PART and (table := next(tables, None)) is not None:
                samples += table.num_rows
                rest = _write_whole_groups(writer, pa.concat_tables([rest, table]))
            if rest.num_rows:
                writer.write_table(rest)
        parts.append({"file": name, "samples": samples})
    return parts


def _write_whole_groups(writer: pq.ParquetWriter, table: pa.Table) -> pa.Table:
    """Writes what fills row groups; returns the rest."""
    whole = table.num_rows // GROUP * GROUP
    if whole:
        writer.write_table(table.slice(0, whole), row_group_size=GROUP)
    return table.slice(whole)


def _add_to_digest(digest: hashlib._Hash, stat: ShardFile, lines: pa.Table) -> None:
    """Order, base names and sizes of shards and all lines count; where shards lie and when they came there does not."""
    digest.update(json.dumps([os.path.basename(stat.url), stat.size, lines.num_rows]).encode())
    for name, kind in (("offset", "<i8"), ("size", "<i8"), ("weight", "<f4")):
        digest.update(lines[name].to_numpy().astype(kind).tobytes())
    for name in ("key", "extension", "label"):
        digest.update(json.dumps(lines[name].to_pylist()).encode())


_REASONS = {
    "shard_empty_file": "is an empty file",
    "shard_compressed": "is compressed, so that samples can't be read one by one",
    "shard_not_a_tar": "is not a tar",
    "shard_unreadable": "can't be read",
}


def _why_empty(shards: list[Shard]) -> str:
    first = shards[0]
    reason = next((text for name, text in _REASONS.items() if name in first.problems), "holds no image")
    if len(shards) == 1:
        return f"{first.url} {reason}: name a plain tar of images, or make one of a folder with `swav pack FOLDER --out SHARDS`."
    return (
        f"None of the {len(shards)} shards has an image to train on; the first, {first.url}, {reason}: name plain tars of "
        f"images, or make them of a folder with `swav pack FOLDER --out SHARDS`."
    )
