"""The feature store: what one pass over the images computes, on disk, so that evaluations and interrupted passes do not repeat it.

STORE/KEY/part-00000.npz … and manifest.json, written last. KEY is of the model, the transform, the index and the chosen samples.
A part has `sample` int64 [n], `features` float32 [n, D] as the encoder returns them, the maps of some samples as float16, and the
refused images by reason. Float32 and not unit length, because linear classifiers need the lengths; embedding sets have neither.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from swav_platform.atomic import replacing, write_text
from swav_platform.config import ImagePolicy
from swav_platform.data.index.lookup import Index
from swav_platform.evaluation.features import batches
from swav_platform.evaluation.frozen.taps import OUTPUT, POOLED, Extract

FORMAT = 1
PART = 2048  # samples; what an interrupted pass repeats at most


class Selection(NamedTuple):
    """Samples of an index: all that are wanted, in index order, and those among them whose maps are wanted."""

    numbers: Sequence[int]
    mapped: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Stored:
    """Features of the readable images of a selection, in index order."""

    sample: np.ndarray  # int64 [n]
    values: np.ndarray  # float32 [n, D]
    maps: dict[str, np.ndarray]  # float16 [m, …] by stage
    mapped: np.ndarray  # int64 [m]: rows of `values` that have maps
    refused: Counter[str]


@dataclass(frozen=True)
class Source:
    """An encoder to compute features with. digest: of its package, or a name of it. transform: what happens to pixels before it."""

    digest: str
    transform: str
    extract: Extract


def one_pass(
    store: Path,
    index: Index,
    chosen: Selection,
    sources: Mapping[str, Source],
    policy: ImagePolicy,
    progress: Callable[[int], None] = lambda images: None,
) -> dict[str, Stored]:
    """Features of a selection by each source. An image is decoded once for all, and not at all if its part is stored."""
    folders = {name: store / _key(index, chosen, source) for name, source in sources.items()}
    starts = range(0, len(chosen.numbers), PART)
    for number, start in enumerate(starts):
        numbers = list(chosen.numbers[start : start + PART])
        missing = {name: folder / f"part-{number:05d}.npz" for name, folder in folders.items()}
        missing = {name: path for name, path in missing.items() if not path.is_file()}
        if missing:
            _make_part(index, numbers, chosen.mapped, {name: (sources[name].extract, missing[name]) for name in missing}, policy)
        progress(len(numbers))
    for name, folder in folders.items():
        source = sources[name]
        facts = {"format": FORMAT, "model": source.digest, "transform": source.transform, "index": index.digest}
        write_text(folder / "manifest.json", json.dumps({**facts, "parts": len(starts), "samples": len(chosen.numbers)}))
    return {name: _read(folder, len(starts)) for name, folder in folders.items()}


def _key(index: Index, chosen: Selection, source: Source) -> str:
    numbers = hashlib.sha256(np.asarray(chosen.numbers, np.int64).tobytes()).hexdigest()
    mapped = hashlib.sha256(np.asarray(sorted(chosen.mapped), np.int64).tobytes()).hexdigest()
    facts = [FORMAT, source.digest, source.transform, index.digest, numbers, mapped]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def _make_part(
    index: Index, numbers: list[int], mapped: frozenset[int], wanted: Mapping[str, tuple[Extract, Path]], policy: ImagePolicy
) -> None:
    columns: dict[str, dict[str, list[np.ndarray]]] = {name: {} for name in wanted}
    samples: list[int] = []
    refused = Counter[str]()
    for batch in batches(index, numbers, policy):
        rows = [i for i, line in enumerate(batch.lines) if line.number in mapped]
        if batch.images:
            for name, (extract, _) in wanted.items():
                for column, values in extract(batch.images, bool(rows)).items():
                    columns[name].setdefault(column, []).append(values if column == OUTPUT else values[rows])
        samples += [line.number for line in batch.lines]
        refused += batch.refused
    for name, (_, path) in wanted.items():
        arrays: dict[str, Any] = {column: np.concatenate(parts) for column, parts in columns[name].items()}
        arrays["sample"] = np.array(samples, np.int64)
        arrays["has_maps"] = np.array([number in mapped for number in samples], bool)
        arrays["refused"] = np.array(json.dumps(refused))
        with replacing(path) as aside, aside.open("wb") as file:
            np.savez(file, **arrays)


def _read(folder: Path, parts: int) -> Stored:
    found: list[dict[str, np.ndarray]] = []
    refused = Counter[str]()
    for number in range(parts):
        with np.load(folder / f"part-{number:05d}.npz") as part:
            refused += Counter(json.loads(str(part["refused"])))
            if len(part["sample"]):
                found.append({name: part[name] for name in part.files if name != "refused"})
    maps = {name: [part[name] for part in found if name in part] for name in POOLED}
    has_maps = _joined([part["has_maps"] for part in found], np.zeros(0, bool))
    return Stored(
        _joined([part["sample"] for part in found], np.zeros(0, np.int64)),
        _joined([part[OUTPUT] for part in found], np.zeros((0, 1), np.float32)),
        {name: np.concatenate(rows) for name, rows in maps.items() if rows},
        np.flatnonzero(has_maps),
        refused,
    )


def _joined(parts: list[np.ndarray], none: np.ndarray) -> np.ndarray:
    return np.concatenate(parts) if parts else none
