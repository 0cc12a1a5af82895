"""Writes a version of an index to a temporary folder, then renames it. A version never changes afterwards."""

from __future__ import annotations

import hashlib
import json
import os
import posixpath
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from swav_platform.atomic import cure, write_text
from swav_platform.data.index.balance import Weights, passes, repeats
from swav_platform.data.index.lookup import Index
from swav_platform.data.index.manifest import FORMAT, GROUP, SHARDS, Shard, ShardFile, ShardTable, is_whole, renumbered
from swav_platform.data.index.shard import SCHEMA, SHARD_REASONS, ShardSamples
from swav_platform.errors import UsageError, UserError

_PART = 2**20  # lines of a part; a part ends with a shard


def write_version(
    files: list[ShardFile], found: Iterable[ShardSamples], out: Path, settings: dict[str, Any], sources: list[dict[str, Any]]
) -> dict[str, Any]:
    """Writes samples of shards as a new version of the index `out`, makes it the current one and returns its manifest.

    settings: everything besides the shards that determines the content. sources: `weight` and number of `shards` of each mixed
    data set. Raises UserError if no shard has a sample or a write fails; the current version then stays current.
    """
    shards: list[Shard] = []

    def tables() -> Iterator[pa.Table]:
        for file, samples in zip(files, found, strict=True):
            digest = shard_digest(file, samples.lines)
            shards.append(Shard(file, samples.lines.num_rows, digest, samples.whole, samples.skipped, samples.probe))
            yield samples.lines

    return _write(tables(), shards, out, settings, sources)


def write_balanced(base: Index, weights: Weights, out: Path) -> dict[str, Any]:
    """Like `write_version`, for a version that repeats samples according to their weights.

    Raises UsageError if sources have weights too: these already determine how often a sample appears.
    """
    if base.manifest["sources"]:
        raise UsageError("Weights of samples and weights of sources can't be combined: use one of the two.")
    times = repeats(base, weights)
    shards = [replace(base.shards[number], samples=int(of_shard.sum())) for number, of_shard in enumerate(times)]
    settings: dict[str, Any] = {name: base.manifest[name] for name in ("label", "excluded", "members") if name in base.manifest}
    return _write(
        passes(base, times), shards, out, {**settings, "weights": weights.digest(), "base": base.manifest["version"]}, []
    )


def _write(
    tables: Iterator[pa.Table], shards: list[Shard], out: Path, settings: dict[str, Any], sources: list[dict[str, Any]]
) -> dict[str, Any]:
    """`shards` may grow while `tables` is consumed."""
    with _temporary_folder(out) as folder:
        parts = _write_parts(folder, tables)
        if not parts:
            raise UserError(_why_empty(shards))
        table = ShardTable.of(shards)
        table.write(folder / SHARDS)
        digest = index_digest(shards, settings, sources)
        content = hashlib.sha256(
            json.dumps([digest, settings, [(s.file.url, s.file.version) for s in shards]]).encode()
        ).hexdigest()
        manifest = {
            "format": FORMAT,
            "digest": digest,
            "version": f"version-{content[:16]}",
            **settings,
            "samples": int(table.first[-1]),
            "shards": len(shards),
            "sources": _with_samples(sources, table),
            "parts": parts,
        }
        (folder / "manifest.json").write_text(json.dumps(manifest, indent=1), encoding="utf-8")
        _move_in(folder, out / str(manifest["version"]), manifest)
    make_current(out, manifest)
    return manifest


def make_current(out: Path, manifest: dict[str, Any]) -> None:
    write_text(out / "manifest.json", json.dumps(manifest, indent=1))


def index_digest(shards: list[Shard], settings: dict[str, Any], sources: list[dict[str, Any]]) -> str:
    """32 hex digits. Depends on the order, base names, sizes and lines of the shards, on labels, and on weights of sources.

    Does not depend on the location or modification time of the shards.
    """
    digest = hashlib.sha256(f"{FORMAT} {settings['label']} {json.dumps(sources)} {settings.get('weights')}".encode())
    for shard in shards:
        digest.update(shard.digest)
    return digest.hexdigest()[:32]


def shard_digest(file: ShardFile, lines: pa.Table) -> bytes:
    digest = hashlib.sha256(json.dumps([posixpath.basename(file.url), file.size, lines.num_rows]).encode())
    for name, kind in (("offset", "<i8"), ("size", "<i8"), ("weight", "<f4")):
        digest.update(lines[name].to_numpy().astype(kind).tobytes())
    for name in ("key", "extension", "label"):
        digest.update(json.dumps(lines[name].to_pylist()).encode())
    return digest.digest()[:16]


def _with_samples(sources: list[dict[str, Any]], table: ShardTable) -> list[dict[str, Any]]:
    ends = np.cumsum([source["shards"] for source in sources], dtype=np.int64)
    return [
        {
            **source,
            "first": int(table.first[end - source["shards"]]),
            "samples": int(table.first[end] - table.first[end - source["shards"]]),
        }
        for source, end in zip(sources, ends, strict=True)
    ]


@contextmanager
def _temporary_folder(out: Path) -> Iterator[Path]:
    """Yields a folder inside `out`, which is removed afterwards. Raises UserError if a write fails."""
    folder = out / f"_building.{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
    except OSError as error:
        raise UserError(
            f"The index in {out} could not be written ({error.strerror or error}): {cure(error)} or choose another folder."
        ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _move_in(folder: Path, version: Path, manifest: dict[str, Any]) -> None:
    """Moves a new version into place. A complete version with this name is equal and stays; a damaged one is replaced."""
    if is_whole(version, manifest):
        return
    with suppress(FileNotFoundError):
        os.replace(version, folder.with_name(f"{folder.name}.old"))
        shutil.rmtree(folder.with_name(f"{folder.name}.old"))
    os.replace(folder, version)


def _write_parts(folder: Path, tables: Iterator[pa.Table]) -> list[dict[str, Any]]:
    """Writes tables in order. A part ends with a shard, and all row groups except the last of a part are full.

    Shards are numbered from the first one of the part, so that equal parts are equal files.
    """
    parts: list[dict[str, Any]] = []
    while (table := next(tables, None)) is not None:
        if not table.num_rows:
            continue
        name, first = f"part-{len(parts):05d}.parquet", int(table["shard"][0].as_py())
        with pq.ParquetWriter(folder / name, SCHEMA) as writer:
            samples, rest = table.num_rows, _write_whole_groups(writer, renumbered(table, -first))
            while samples < _PART and (table := next(tables, None)) is not None:
                samples += table.num_rows
                rest = _write_whole_groups(writer, pa.concat_tables([rest, renumbered(table, -first)]))
            if rest.num_rows:
                writer.write_table(rest)
        parts.append({"file": name, "samples": samples, "first_shard": first})
    return parts


def _write_whole_groups(writer: pq.ParquetWriter, table: pa.Table) -> pa.Table:
    """Writes all full row groups; returns the remaining lines."""
    whole = table.num_rows // GROUP * GROUP
    if whole:
        writer.write_table(table.slice(0, whole), row_group_size=GROUP)
    return table.slice(whole)


def _why_empty(shards: list[Shard]) -> str:
    first = shards[0]
    counts = first.skipped.counts
    none = f"None of the {len(shards):,} shards has an image to train on"
    reason = next((text for name, text in SHARD_REASONS.items() if name in counts), "contains no image")
    if "not_chosen" in counts:
        reason = "contains no image that --members or data.members chooses"
    if "excluded" in counts:
        reason = "contains only images on the exclusion list"
    if details := first.skipped.examples.get("shard_unreadable"):
        return details[0] if len(shards) == 1 else f"{none}. The first one: {details[0]}"
    if len(shards) == 1:
        return (
            f"{first.file.url} {reason}: pass a tar of images, or pack a folder of images with `swav pack FOLDER --out SHARDS`."
        )
    return (
        f"{none}; the first one, {first.file.url}, {reason}. Pass tars of images, or pack a folder of images with "
        f"`swav pack FOLDER --out SHARDS`."
    )
