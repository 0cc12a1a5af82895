"""A page that shows views as they are trained on, each with the parameters that made it."""

from __future__ import annotations

import base64
import html
from io import BytesIO

import numpy as np
from PIL import Image

from swav_platform.config import Config
from swav_platform.data.outcomes import Outcome
from swav_platform.images.layout import Row
from swav_platform.images.params import COLUMN, ORDERS

POSITIONS = 16
"""Most positions of a page."""

_CHANGES = ("brightness", "contrast", "saturation", "hue")
_STYLE = """
:root { color-scheme: light dark; font: 14px/1.4 system-ui, sans-serif }
body { margin: 2rem } h2 { margin: 2rem 0 .3rem; font-size: 1rem } h2 small { font-weight: normal; opacity: .7 }
.views { display: flex; flex-wrap: wrap; gap: .8rem } figure { margin: 0; max-width: 14rem } img { display: block; max-width: 100% }
figcaption { font-size: .75rem; opacity: .8; margin-top: .2rem }
"""


def contact_sheet(row: Row, config: Config) -> str:
    """HTML, complete in itself: the views of a row's first positions, whose colours are changed already."""
    parts = [_position(row, config, slot) for slot in range(min(POSITIONS, len(row.position)))]
    title = f"Views of seed {config.seed}"
    head = (
        f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title><style>{_STYLE}</style>'
    )
    return f'<!doctype html><html lang="en"><head>{head}</head><body><h1>{title}</h1>{"".join(parts)}</body></html>\n'


def _position(row: Row, config: Config, slot: int) -> str:
    figures = []
    for name, views, params in zip(config.views, row.views, row.params, strict=True):
        for view in range(len(views)):
            said = html.escape(f"{name} {view}: {describe(params[view, slot])}")
            figures.append(f'<figure><img alt="" src="{_png(views[view, slot])}"><figcaption>{said}</figcaption></figure>')
    why = Outcome(int(row.outcome[slot])).word
    notes = [f"stands in for {row.stand_in_for[slot]} ({why})"] if row.stand_in_for[slot] else []
    notes += [f"no image could be had ({why}): grey, without weight"] if not row.weight[slot] else []
    where = html.escape(" · ".join([row.key[slot], row.shard[slot], *notes]))
    return f'<h2>Position {row.position[slot]} <small>{where}</small></h2><div class="views">{"".join(figures)}</div>'


def describe(params: np.ndarray) -> str:
    """Parameters of one view, float32 [P], in words: what was cut out, and the changes in their order."""
    p = {name: float(params[column]) for name, column in COLUMN.items()}
    if not p["source_height"]:
        return "no image"
    said = [
        f"{p['width']:.0f}×{p['height']:.0f} at ({p['left']:.0f}, {p['top']:.0f}) of {p['source_width']:.0f}×{p['source_height']:.0f}"
    ]
    said += ["flipped"] if p["flip"] else []
    for change in ORDERS[int(p["order"])] if p["jitter"] else ():
        name = _CHANGES[change]
        said.append(f"hue {p[name]:+.2f}" if name == "hue" else f"{name} ×{p[name]:.2f}")
    said += ["grey"] if p["grey"] else []
    said += [f"blur σ {p['blur_sigma']:.2f}"] if p["blur_sigma"] else []
    said += ["solarised"] if p["solarise"] else []
    return ", ".join(said)


def _png(pixels: np.ndarray) -> str:
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
