"""The ledger as a self-contained HTML page: the bad images of each shard, worst shards first."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from html import escape
from itertools import groupby

from swav_platform.data.ledger.ledger import Ledger
from swav_platform.data.ledger.outcomes import Event

STYLE = """
body{font:15px system-ui,sans-serif;margin:2em auto;max-width:1100px;padding:0 1em;color:#222;background:#fff}
h1{font-size:1.4em}h2{font-size:1.1em;margin-top:2em;overflow-wrap:anywhere}
ul{list-style:none;padding:0;display:grid;grid-template-columns:repeat(auto-fill,minmax(200px,1fr));gap:12px}
li{border:1px solid #ddd;border-radius:6px;padding:8px;overflow-wrap:anywhere}
img,.none{display:block;height:96px;max-width:100%;margin-bottom:6px}.none{background:#f2f2f2;color:#666;line-height:96px;text-align:center}
small{color:#555}
@media(prefers-color-scheme:dark){body{background:#181818;color:#ddd}li{border-color:#444}.none{background:#2a2a2a;color:#aaa}small{color:#aaa}}
"""


Odd = Sequence[tuple[str, Sequence[tuple[str, str, bytes | None]]]]
"""Titles of further sections, and of each image its name, a detail and a JPEG."""


def ledger_page(ledger: Ledger, run: str, odd: Odd = ()) -> str:
    """Names and details are escaped. odd: images that were used but look odd."""
    shards = ledger.samples_by_shard()
    place = {shard: number for number, shard in enumerate(shards)}
    bad = sorted(ledger.bad(), key=lambda event: place[event.shard])
    counts = ", ".join(f"{count:,} {word}" for word, count in ledger.samples_by_outcome().items()) or "none"
    sections = [_section(shard, shards[shard], list(events)) for shard, events in groupby(bad, key=lambda event: event.shard)]
    title = f"Bad images of {escape(run)}"
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{title}</title><style>{STYLE}</style><h1>{title}</h1>"
        f"<p>{len(bad):,} images: {counts}. Positions whose own image was bad: {ledger.quarantined:,}.</p>{''.join(sections)}{''.join(map(_odd_section, odd))}</html>"
    )


def _section(shard: str, reasons: dict[str, int], events: list[Event]) -> str:
    counts = ", ".join(f"{count:,} {word}" for word, count in reasons.items())
    return f"<h2>{escape(shard)}: {counts}</h2><ul>{''.join(map(_item, events))}</ul>"


def _odd_section(section: tuple[str, Sequence[tuple[str, str, bytes | None]]]) -> str:
    title, images = section
    items = [
        f"<li>{_picture(small)}<b>{escape(name)}</b><br><small>{escape(detail)}</small></li>" for name, detail, small in images
    ]
    return f"<h2>{escape(title)}</h2><ul>{''.join(items)}</ul>"


def _picture(small: bytes | None) -> str:
    if small is None:
        return '<span class="none">no picture</span>'
    return f'<img alt="" src="data:image/jpeg;base64,{b64encode(small).decode()}">'


def _item(event: Event) -> str:
    return f"<li>{_picture(event.thumbnail)}<b>{event.outcome.word}</b> {escape(event.key)}<br><small>{escape(event.detail)}</small></li>"
