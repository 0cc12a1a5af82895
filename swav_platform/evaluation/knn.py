"""Weighted nearest-neighbour classification (Wu et al. 2018, section 3.4)."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from swav_platform.config import Config
from swav_platform.data.index.build import build_index
from swav_platform.data.index.lookup import Index
from swav_platform.data.index.sources import expand
from swav_platform.errors import UsageError, UserError
from swav_platform.evaluation.features import Features, encoder_function, features, subset
from swav_platform.models.encoders import build_encoder
from swav_platform.models.package import load_package
from swav_platform.runs.folder import RunFolder

log = logging.getLogger("swav")


def knn_top1(bank: Features, query: Features, k: int, temperature: float) -> float:
    """Top-1 accuracy in percent. The k nearest bank rows vote for their labels with weights exp(cosine / temperature).

    Rows without a label are ignored on both sides.
    """
    bank, query = _labelled(bank), _labelled(query)
    names = {name: i for i, name in enumerate(sorted({str(label) for label in (*bank.labels, *query.labels)}))}
    bank_labels = np.array([names[str(label)] for label in bank.labels])
    right = 0
    for start in range(0, len(query.values), 512):
        cosines = query.values[start : start + 512] @ bank.values.T  # [q, n]
        nearest = np.argpartition(-cosines, min(k, cosines.shape[1]) - 1, axis=1)[:, :k]
        near = np.take_along_axis(cosines, nearest, 1).astype(np.float64)
        weights = np.exp((near - near.max(1, keepdims=True)) / temperature)  # relative to the nearest, to avoid overflow
        votes = np.zeros((len(nearest), len(names)))
        np.add.at(votes, (np.arange(len(nearest))[:, None], bank_labels[nearest]), weights)
        wanted = [names[str(label)] for label in query.labels[start : start + 512]]
        right += int((votes.argmax(1) == wanted).sum())
    return 100.0 * right / max(1, len(query.values))


def _labelled(rows: Features) -> Features:
    """The rows that have a label."""
    kept = [i for i, label in enumerate(rows.labels) if label is not None]
    return Features(rows.values[kept], [rows.labels[i] for i in kept], rows.refused)


def evaluate_knn(
    folder: RunFolder,
    bank: str,
    query: str,
    *,
    label: str,
    bank_size: int | None = None,
    query_size: int | None = None,
    k: int = 20,
    temperature: float = 0.1,
    baselines: dict[str, Callable[[list[np.ndarray]], np.ndarray]] | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """kNN accuracy of a run's encoder, of the same network at random initialisation, and of `baselines`.

    bank, query: shard patterns. baselines: name -> function from images to float32 [b, D].
    progress(done, total) counts images.
    In the result, `bank` and `query` count readable images with a label; `refused` counts unreadable ones by reason, both sides.
    Raises UserError if a side has no readable image with a label.
    """
    config, package = folder.config(), load_package(folder.package)
    size = package.meta["input_size"]
    functions = {
        "knn_top1": encoder_function(package.encoder, size),
        "knn_top1_random_init": encoder_function(build_encoder(config.model, seed=config.seed), size),
        **(baselines or {}),
    }
    sides = [_side(folder, "bank", bank, label, bank_size, config), _side(folder, "query", query, label, query_size, config)]
    _warn_of_shared_shards(*(index for index, _ in sides))
    total, done = sum(len(numbers) for _, numbers in sides), 0

    def counted(images: int) -> None:
        nonlocal done
        done += images
        progress(done, total)

    banks, queries = (features(index, numbers, functions, config.data.images, counted) for index, numbers in sides)
    for side, pattern, found in (("bank", bank, banks["knn_top1"]), ("query", query, queries["knn_top1"])):
        _check_side(side, pattern, label, found)
    result: dict[str, Any] = {name: round(knn_top1(banks[name], queries[name], k, temperature), 2) for name in functions}
    result |= {"bank": len(_labelled(banks["knn_top1"]).values), "query": len(_labelled(queries["knn_top1"]).values)}
    refused = banks["knn_top1"].refused + queries["knn_top1"].refused
    return {**result, "refused": refused, "k": k, "temperature": temperature}


def _side(folder: RunFolder, side: str, pattern: str, label: str, size: int | None, config: Config) -> tuple[Index, list[int]]:
    if size is not None and size < 1:
        raise UsageError(f"--{side}-size must be at least 1, not {size}.")
    where = folder.path / "evaluation" / side
    build_index(expand([pattern]), where, label=label)
    index = Index.open(where)
    return index, subset(index, size, config.seed)


def _warn_of_shared_shards(bank: Index, query: Index) -> None:
    same = sorted({file.url for file in bank.shards.files()} & {file.url for file in query.shards.files()})
    if same:
        log.warning(
            f"{len(same)} shards are in both --bank and --query, for example {same[0]}. An image in both is its own nearest "
            "neighbour, so scores are too high. Use disjoint shards."
        )


def _check_side(side: str, pattern: str, label: str, found: Features) -> None:
    if not found.labels:
        reasons = ", ".join(f"{count} {word}" for word, count in found.refused.items())
        raise UserError(f"No image of --{side} {pattern} can be read ({reasons}). Choose other shards.")
    if all(name is None for name in found.labels):
        raise UserError(f"The images of --{side} {pattern} have no labels under '{label}'. Choose another --label.")


def results_file(folder: RunFolder) -> Path:
    """Where `swav evaluate knn` stores a run's result."""
    return folder.path / "evaluation" / "knn.json"
