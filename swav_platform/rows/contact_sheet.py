"""An HTML page that shows views as training sees them, with the parameters of each and its box in the image."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from io import BytesIO

import numpy as np
import yaml
from PIL import Image

from swav_platform.config import Config
from swav_platform.data.ledger.outcomes import Outcome
from swav_platform.images.views.params import COLUMN, ORDERS
from swav_platform.rows.layout import Row

POSITIONS = 16
"""Limit of the positions on a page."""

SIDE = 320
"""Limit, in pixels, of the sides of the images on a page."""

_BOX = ("left", "top", "width", "height", "source_width", "source_height")
_CHANGES = ("brightness", "contrast", "saturation", "hue")
_STYLE = """
:root { color-scheme: light dark; font: 14px/1.4 system-ui, sans-serif }
body { margin: 2rem } h2 { margin: 2rem 0 .3rem; font-size: 1rem } h2 small { font-weight: normal; opacity: .7 }
.views { display: flex; flex-wrap: wrap; gap: .8rem } figure { margin: 0; max-width: 14rem } img { display: block; max-width: 100% }
figcaption { font-size: .75rem; opacity: .8; margin-top: .2rem } pre { overflow-x: auto }
svg { display: block; width: 14rem; min-height: 1.5rem; max-height: 20rem } rect { fill: none; stroke-width: 2; vector-effect: non-scaling-stroke }
.g0 { --group: #e6194b } .g1 { --group: #00a6d6 } .g2 { --group: #3cb44b } .g3 { --group: #f58231 }
rect { stroke: var(--group) } figcaption[class] { border-top: 3px solid var(--group) }
"""


def contact_sheet(row: Row, config: Config, images: Sequence[bytes | None]) -> str:
    """A self-contained HTML page of a row's first positions. The colours of the views must have been changed already.

    images: a small JPEG of the image that fills each of those positions, None where no image does.
    """
    parts = [_settings(config), *(_position(row, config, slot, image) for slot, image in enumerate(images))]
    title = f"Views of seed {config.seed}"
    head = (
        f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title><style>{_STYLE}</style>'
    )
    return f'<!doctype html><html lang="en"><head>{head}</head><body><h1>{title}</h1>{"".join(parts)}</body></html>\n'


def _settings(config: Config) -> str:
    tree = config.model_dump(mode="json")
    text = yaml.safe_dump({"views": tree["views"], "data": {"images": tree["data"]["images"]}}, sort_keys=False)
    return f"<details><summary>Settings</summary><pre>{html.escape(text)}</pre></details>"


def _position(row: Row, config: Config, slot: int, image: bytes | None) -> str:
    figures = [_source(row, config, slot, image)] if image else []
    for number, (name, views, params) in enumerate(zip(config.views, row.views, row.params, strict=True)):
        for view in range(len(views)):
            said = (
                f'<figcaption class="g{number % 4}">{html.escape(f"{name} {view}: {describe(params[view, slot])}")}</figcaption>'
            )
            figures.append(f'<figure><img alt="" src="{_png(views[view, slot])}">{said}</figure>')
    own = next((event.detail for event in row.events if event.position == row.position[slot]), "")
    why = f"{Outcome(int(row.outcome[slot])).word}: {own}"
    notes = [f"replaces {row.stand_in_for[slot]} ({why})"] if row.stand_in_for[slot] else []
    notes += [f"no usable image ({why}): grey, with weight 0"] if not row.weight[slot] else []
    where = html.escape(" · ".join([row.key[slot], row.shard[slot], *notes]))
    return f'<h2>Position {row.position[slot]} <small>{where}</small></h2><div class="views">{"".join(figures)}</div>'


def _source(row: Row, config: Config, slot: int, image: bytes) -> str:
    """The image with the boxes of its views, one colour for each group."""
    boxes: list[str] = []
    size = [0.0, 0.0]
    for number, (name, params) in enumerate(zip(config.views, row.params, strict=True)):
        for view in range(len(params)):
            left, top, width, height, *size = (float(params[view, slot, COLUMN[column]]) for column in _BOX)
            title = html.escape(f"{name} {view}")
            boxes.append(
                f'<rect class="g{number % 4}" x="{left:g}" y="{top:g}" width="{width:g}" height="{height:g}"><title>{title}</title></rect>'
            )
    picture = f'<image width="{size[0]:g}" height="{size[1]:g}" preserveAspectRatio="none" href="data:image/jpeg;base64,{base64.b64encode(image).decode()}"/>'
    svg = f'<svg viewBox="0 0 {size[0]:g} {size[1]:g}" role="img" aria-label="boxes of the views">{picture}{"".join(boxes)}</svg>'
    return f"<figure>{svg}<figcaption>The image and the boxes of its views, in the colours of their groups</figcaption></figure>"


def describe(params: np.ndarray) -> str:
    """Parameters of one view, float32 [P], in words: the crop, then the changes in their order."""
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
