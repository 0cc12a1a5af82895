"""The demo's report: loss, kNN scores, prototype usage and the largest clusters, as one HTML file without scripts."""

from __future__ import annotations

import base64
import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from swav_platform.data.sets.read import EmbeddingSet

_STYLE = """
:root { color-scheme: light dark; --ink: #1b1d23; --soft: #5b6270; --line: #d7dbe2; --mark: #0b6bcb; --paper: #fff; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #eceef2; --soft: #a3abba; --line: #3a404c; --mark: #6ab0ff; --paper: #15171c; }
}
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); }
body { max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; margin-bottom: .2rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
p, figcaption { color: var(--soft); margin: .3rem 0; } figure { margin: 1rem 0; }
table { border-collapse: collapse; }
td, th { text-align: left; padding: .25rem 1.2rem .25rem 0; border-bottom: 1px solid var(--line); }
td.n { text-align: right; font-variant-numeric: tabular-nums; }
figure { overflow-x: auto; } svg { width: 100%; min-width: 30rem; height: auto; }
.sheet { display: flex; flex-wrap: wrap; gap: 3px; } .sheet img { width: 56px; height: 56px; object-fit: cover; }
code { overflow-wrap: anywhere; }
"""


@dataclass(frozen=True)
class Cluster:
    """One cluster of an embedding set."""

    number: int
    size: int
    thumbnails: list[bytes]  # JPEG, nearest to the prototype first


def largest_clusters(embeddings: EmbeddingSet, count: int, members: int) -> tuple[list[Cluster], np.ndarray]:
    """The `count` largest clusters of a set, and the sizes of all clusters with members, largest first."""
    table = pa.Table.from_batches(list(embeddings.lines(["sample", "cluster", "score"])))
    sample, cluster, score = (table[name].to_numpy() for name in ("sample", "cluster", "score"))
    numbers, sizes = np.unique(cluster, return_counts=True)
    order = np.argsort(-sizes, kind="stable")
    shown = []
    for number in numbers[order[:count]]:
        rows = np.flatnonzero(cluster == number)
        shown.append(sample[rows[np.argsort(-score[rows], kind="stable")[:members]]])
    pictures = embeddings.pictures(set(np.concatenate([*shown, sample[:0]]).tolist()))
    found = [
        Cluster(int(number), int(size), [pictures[n] for n in nearest.tolist() if n in pictures])
        for number, size, nearest in zip(numbers[order], sizes[order], shown, strict=False)
    ]
    return found, sizes[order]


def write_report(
    path: Path,
    *,
    title: str,
    facts: Mapping[str, Any],
    scores: Mapping[str, float],
    losses: Sequence[float],
    prototypes: int,
    embeddings: EmbeddingSet,
    pages: Mapping[str, str],
    explorer: str,
) -> None:
    """Writes the report to `path`.

    facts: name -> value, shown as a table. scores: name of the features -> kNN top-1 in percent. losses: one per step.
    pages: name -> file beside the report. explorer: the command that serves the model.
    """
    clusters, sizes = largest_clusters(embeddings, count=8, members=24)
    parts = [
        f"<h1>{html.escape(title)}</h1>",
        f"<p>{len(losses)} steps, {prototypes} prototypes, {int(sizes.sum()):,} images embedded.</p>",
        _table(facts),
        _further(pages, explorer),
        "<h2>Loss</h2>",
        _loss(losses, math.log(prototypes)),
    ]
    if scores:
        parts += ["<h2>kNN accuracy</h2>", _bars(scores)]
    parts += ["<h2>Prototypes in use</h2>", _usage(sizes, prototypes), "<h2>Largest clusters</h2>"]
    parts += [_sheet(cluster) for cluster in clusters]
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head><body><main>{''.join(parts)}</main></body></html>"
    )
    path.write_text(page, encoding="utf-8")


EXPLORER = "http://127.0.0.1:8000/"


def _further(pages: Mapping[str, str], explorer: str) -> str:
    links = ", ".join(f'<a href="{html.escape(file)}">{html.escape(name)}</a>' for name, file in pages.items())
    return (
        f"<h2>Look further</h2><p>Pages: {links}.</p><p>The explorer searches, shows the map and all clusters: run "
        f'<code>{html.escape(explorer)}</code>, then open <a href="{EXPLORER}">{EXPLORER}</a>.</p>'
    )


def _table(facts: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<tr><th scope='row'>{html.escape(str(k))}</th><td><code>{html.escape(str(v))}</code></td></tr>"
        for k, v in facts.items()
    )
    return f"<table>{rows}</table>"


def _loss(losses: Sequence[float], ln_k: float) -> str:
    return (
        f"<figure>{curve(losses, ln_k)}<figcaption>Swapped-prediction loss. The dashed line is ln K = {ln_k:.2f}, "
        f"the loss of uniform predictions.</figcaption></figure>"
    )


def curve(losses: Sequence[float], ln_k: float | None) -> str:
    """The loss of each step as a self-contained SVG. ln K, unless None, is a dashed line."""
    width, height, left, bottom = 640, 220, 40, 24
    low, high = min(losses) * 0.97, max(*losses, ln_k or 0.0) * 1.02

    def x(step: int) -> float:
        return left + (width - left - 4) * step / max(1, len(losses) - 1)

    def y(value: float) -> float:
        return 6 + (height - bottom - 6) * (high - value) / max(1e-9, high - low)

    line = " ".join(f"{x(i):.1f},{y(v):.1f}" for i, v in enumerate(losses))
    ticks = "".join(
        f'<text x="{left - 6}" y="{y(v):.1f}" text-anchor="end">{v:.1f}</text>'
        for v in (float(t) for t in np.linspace(low, high, 4))
    )
    note, level = "", ""
    if ln_k is not None:
        note = f"; ln K is {ln_k:.2f}"
        level = f'<line x1="{left}" x2="{width}" y1="{y(ln_k):.1f}" y2="{y(ln_k):.1f}" stroke="#7a8291" stroke-dasharray="4 4"/>'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'font-family="sans-serif" font-size="11" fill="#7a8291" role="img" '
        f'aria-label="Loss from {losses[0]:.2f} to {losses[-1]:.2f}{note}">{level}'
        f'<polyline points="{line}" fill="none" stroke="#2f86de" stroke-width="1.6"/>{ticks}'
        f'<text x="{left}" y="{height - 4}">step 0</text>'
        f'<text x="{width - 4}" y="{height - 4}" text-anchor="end">step {len(losses) - 1}</text></svg>'
    )


def _bars(scores: Mapping[str, float]) -> str:
    rows = []
    for place, (name, value) in enumerate(scores.items()):
        y = place * 30
        rows.append(
            f'<text x="0" y="{y + 19}" font-size="13" fill="currentColor">{html.escape(name)}</text>'
            f'<rect x="170" y="{y + 5}" width="{4 * value:.1f}" height="20" fill="var(--mark)" '
            f'opacity="{1 if place == 0 else 0.45}"/>'
            f'<text x="{176 + 4 * value:.1f}" y="{y + 19}" font-size="13" fill="currentColor">{value:.1f} %</text>'
        )
    label = ", ".join(f"{k} {v:.1f} %" for k, v in scores.items())
    opening = f'<svg viewBox="0 0 640 {30 * len(scores)}" role="img" aria-label="{html.escape(label)}">'
    return f"<figure>{opening}{''.join(rows)}</svg></figure>"


def _usage(sizes: np.ndarray, prototypes: int) -> str:
    width, height = 640, 120
    step, top = width / max(1, prototypes), max(1, int(sizes[0]) if len(sizes) else 1)
    bars = "".join(
        f'<rect x="{i * step:.2f}" y="{height - height * s / top:.1f}" width="{max(0.5, step * 0.85):.2f}" '
        f'height="{height * s / top:.1f}" fill="var(--mark)"/>'
        for i, s in enumerate(sizes[:2000])
    )
    used = int((sizes > 0).sum())
    return (
        f'<figure><svg viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{used} of {prototypes} prototypes have members">{bars}</svg>'
        f"<figcaption>{used} of {prototypes} prototypes have members; the largest cluster has {top:,}.</figcaption></figure>"
    )


def _sheet(cluster: Cluster) -> str:
    pictures = "".join(
        f'<img alt="member {i + 1} of cluster {cluster.number}" src="data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}">'
        for i, jpeg in enumerate(cluster.thumbnails)
    )
    caption = f"<figcaption>Cluster {cluster.number}: {cluster.size:,} images</figcaption>"
    return f'<figure>{caption}<div class="sheet">{pictures}</div></figure>'
