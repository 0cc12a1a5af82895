"""HTML pages of pictures in sections, self-contained and without scripts."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

_STYLE = """
:root { color-scheme: light dark; font: 14px/1.4 system-ui, sans-serif }
body { margin: 2rem auto; max-width: 80rem; padding: 0 1rem } h1 { font-size: 1.4rem } h2 { font-size: 1rem; margin: 1.6rem 0 .4rem }
.row { display: flex; flex-wrap: wrap; gap: .6rem } figure { margin: 0; width: 9rem } figure.kept img { outline: 3px solid #3cb44b }
img, .none { width: 6rem; height: 6rem; object-fit: cover; display: block; border: 0; background: #8884 }
figcaption { font-size: .75rem; overflow-wrap: anywhere; opacity: .85 }
"""


@dataclass(frozen=True)
class Card:
    """A picture (JPEG, if there is one) with its name and a line of detail. kept: it is marked."""

    picture: bytes | None
    name: str
    detail: str
    kept: bool = False


def page(title: str, intro: str, sections: Iterable[tuple[str, Sequence[Card]]]) -> str:
    """sections: headings and their cards."""
    body = "".join(
        f'<h2>{html.escape(head)}</h2><div class="row">{"".join(map(_figure, cards))}</div>' for head, cards in sections
    )
    name = html.escape(title)
    head = (
        f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{name}</title><style>{_STYLE}</style>'
    )
    return f'<!doctype html><html lang="en"><head>{head}</head><body><h1>{name}</h1><p>{html.escape(intro)}</p>{body}</body></html>\n'


def _figure(card: Card) -> str:
    kept = ' class="kept"' if card.kept else ""
    mark = "kept · " if card.kept else ""
    shown = '<div class="none"></div>'
    if card.picture:
        shown = f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(card.picture).decode("ascii")}">'
    caption = f"<figcaption>{html.escape(card.name)}<br>{mark}{html.escape(card.detail)}</figcaption>"
    return f"<figure{kept}>{shown}{caption}</figure>"
