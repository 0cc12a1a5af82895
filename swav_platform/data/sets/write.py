"""Writes an embedding set part by part. A part that is complete is never written again, so a killed job goes on where it was."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from swav_platform.data.sets.layout import JOB, MANIFEST, OK, PartReport, Recipe, part_file, report_file, thumbnail_file
from swav_platform.errors import UserError
from swav_platform.failures import Kind, MachineFault, Tell, machine_fault, patiently
from swav_platform.runs.storage import Storage

_CONCURRENT = 16  # reads of small objects
_MADE_FROM_IT = ("duplicates.parquet", "map.parquet", "outliers.parquet")  # by `swav neighbours`
_OLD = ("embeddings.json", "embeddings.parquet")  # the form of earlier versions


def begin(storage: Storage, recipe: Recipe) -> dict[int, PartReport]:
    """Prepares the place of a set and returns the parts that are already there.

    The files of a set with another recipe are deleted.
    """
    written = recipe.written()
    sizes = storage.entries()
    if (done := _json(storage, MANIFEST)) is not None and all(done.get(name) == value for name, value in written.items()):
        known = enumerate(PartReport(**part) for part in done["parts"])
        return {number: report for number, report in known if _is_whole(report, sizes)}
    if _json(storage, JOB) != written:
        storage.delete([MANIFEST, *(name for name in sizes if _belongs(name))])
        storage.put(JOB, json.dumps(written).encode())
        return {}
    numbers = [number for number in range(len(recipe.parts)) if report_file(number) in sizes]
    with ThreadPoolExecutor(_CONCURRENT) as pool:
        reports = list(pool.map(lambda number: _json(storage, report_file(number)), numbers))
    found = {number: PartReport(**report) for number, report in zip(numbers, reports, strict=True) if report}
    return {number: report for number, report in found.items() if _is_whole(report, sizes)}


def put_part(
    storage: Storage, number: int, table: pa.Table, thumbnails: pa.Table | None, patience: float, tell: Tell
) -> PartReport:
    """Writes a part, and then its report. Waits for a storage that fails; raises MachineFault after `patience` seconds."""
    data = _parquet(table)
    outcomes = Counter(table["outcome"].to_pylist())
    small = None if thumbnails is None else _parquet(thumbnails)
    report = PartReport(
        **_facts(part_file(number), table.num_rows, data),
        labelled=table.num_rows - table["label"].null_count,
        refused={word: count for word, count in sorted(outcomes.items()) if word != OK},
        thumbnails=None if small is None or thumbnails is None else _facts(thumbnail_file(number), thumbnails.num_rows, small),
    )
    pending = [
        (part_file(number), data),
        *([(thumbnail_file(number), small)] if small else []),
        (report_file(number), report.json()),
    ]

    def put() -> None:
        while pending:
            name, content = pending[0]
            try:
                storage.put(name, content)
            except (OSError, UserError) as error:
                fault = machine_fault(error, f"{storage.place}/{name}")
                raise fault or MachineFault(Kind.UNREACHABLE, f"{storage.place}/{name}", str(error)) from error
            pending.pop(0)

    patiently(put, patience, tell, place=str(storage.place))
    return report


def finish(storage: Storage, recipe: Recipe, reports: Sequence[PartReport]) -> dict[str, Any]:
    """Writes the manifest, which makes the set valid, and returns it. reports: of all parts, in order."""
    refused = sum((Counter(report.refused) for report in reports), Counter[str]())
    manifest = {
        **recipe.written(),
        "embedded": sum(report.rows for report in reports) - refused.total(),
        "labelled": sum(report.labelled for report in reports),
        "refused": dict(sorted(refused.items())),
        "parts": [json.loads(report.json()) for report in reports],
    }
    storage.put(MANIFEST, json.dumps(manifest).encode())
    storage.delete([name for name in storage.entries() if name.startswith("_job/")])
    storage.delete(_OLD)
    if isinstance(storage.place, Path):
        with contextlib.suppress(OSError):
            (storage.place / "_job").rmdir()
    return manifest


def _belongs(name: str) -> bool:
    """Whether a file is of a set: only such files are deleted."""
    return name == MANIFEST or name in _MADE_FROM_IT or name.startswith(("_job/", "part-", "thumbnails-"))


def _is_whole(report: PartReport, sizes: dict[str, int]) -> bool:
    files: Iterable[dict[str, Any]] = [
        {"file": report.file, "size": report.size},
        *([report.thumbnails] if report.thumbnails else []),
    ]
    return all(sizes.get(str(file["file"])) == file["size"] for file in files)


def _json(storage: Storage, name: str) -> dict[str, Any] | None:
    try:
        return dict(json.loads(storage.get(name)))
    except (FileNotFoundError, ValueError):
        return None


def _parquet(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    packed = {name: "zstd" for name in table.column_names if name not in ("embedding", "thumbnail")}  # these do not get smaller
    pq.write_table(table, sink, compression=packed, use_dictionary=["shard", "label", "outcome"], write_statistics=False)
    return sink.getvalue()


def _facts(file: str, rows: int, data: bytes) -> dict[str, Any]:
    return {"file": file, "rows": rows, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
