"""`swav health --html`: a self-contained page with the verdict and a plot of each health metric."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from swav_platform.atomic import write_text

POINTS = 500  # of a plot, at most
WIDTH, HEIGHT = 420, 140
FIRST = ("train/loss", "health/loss_minus_ln_k", "health/rankme", "health/rankme_backbone", "health/lidar", "health/separation")
_STYLE = """
:root { color-scheme: light dark; font: 14px/1.4 system-ui, sans-serif } body { margin: 2rem }
.plots { display: flex; flex-wrap: wrap; gap: 1.2rem } figure { margin: 0 } figcaption { font-size: .8rem }
svg { background: #8881; display: block } polyline { fill: none; stroke: #0a7cc4; stroke-width: 1.5; vector-effect: non-scaling-stroke }
.state { font-size: 1.4rem; font-weight: 600 } .learning, .starting { color: #2a8a3a } .bad { color: #c22 }
"""


def write_page(report: Mapping[str, Any], lines: Iterable[Mapping[str, Any]], path: Path) -> None:
    """Writes the page of a report of `judged`. lines: the run's metrics. Raises UserError if the file can't be written."""
    series: dict[str, list[tuple[int, float]]] = {}
    for line in lines:
        for name, value in line.items():
            if name.startswith(("train/", "health/", "data/")) and value is not None and math.isfinite(value):
                series.setdefault(name, []).append((int(line["step"]), float(value)))
    names = sorted(series, key=lambda name: (FIRST.index(name) if name in FIRST else len(FIRST), name))
    plots = "".join(_plot(name, _thinned(series[name])) for name in names if len(series[name]) > 1)
    state = html.escape(str(report["state"]))
    kind = state if state in ("learning", "starting") else "bad"
    text = " ".join(html.escape(str(report[key] or "")) for key in ("because", "do"))
    title = f"Health of {html.escape(str(report['run']))}"
    head = (
        f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title><style>{_STYLE}</style>'
    )
    verdict = f'<p class="state {kind}">{state}, step {report["step"]} of {report["steps"]}</p><p>{text}</p>'
    body = f'<h1>{title}</h1>{verdict}<div class="plots">{plots}</div>'
    write_text(path, f'<!doctype html><html lang="en"><head>{head}</head><body>{body}</body></html>\n')


def _thinned(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """At most POINTS of them, evenly, with the last one."""
    stride = -(-len(points) // POINTS)
    return [*points[::stride], points[-1]]


def _plot(name: str, points: Sequence[tuple[int, float]]) -> str:
    (first, _), (last, newest) = points[0], points[-1]
    low, high = min(y for _, y in points), max(y for _, y in points)
    across, up = max(last - first, 1), (high - low) or 1.0
    at = " ".join(f"{(x - first) / across * WIDTH:.1f},{HEIGHT - (y - low) / up * HEIGHT:.1f}" for x, y in points)
    caption = f"{html.escape(name)}: {newest:.4g} (from {low:.4g} to {high:.4g})"
    return (
        f'<figure><svg width="{WIDTH}" height="{HEIGHT}" viewBox="0 -3 {WIDTH} {HEIGHT + 6}" role="img" aria-label="{caption}">'
        f'<polyline points="{at}"/></svg><figcaption>{caption}</figcaption></figure>'
    )
