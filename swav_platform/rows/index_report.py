"""The report of an index as a self-contained HTML page with example images."""

from __future__ import annotations

from base64 import b64encode
from html import escape
from pathlib import Path

import numpy as np

from swav_platform.atomic import write_text
from swav_platform.config import ImagePolicy
from swav_platform.data.index.build import IndexReport
from swav_platform.data.index.lookup import Index, IndexLine
from swav_platform.data.ledger.page import STYLE
from swav_platform.data.samples import ReadFailure, read_samples
from swav_platform.images.decoding.decode import thumbnail

EXAMPLES = 48
"""Images on a page, at equal distances in the index."""


def write_report(index: Index, report: IndexReport, path: Path) -> None:
    """Raises UserError if the page can't be written."""
    write_text(path, _page(index, report))


def _page(index: Index, report: IndexReport) -> str:
    numbers = np.unique(np.linspace(0, index.samples - 1, EXAMPLES).astype(np.int64))
    lines = index.lines(numbers)
    policy = ImagePolicy()
    contents = read_samples(lines, max_bytes=policy.max_bytes)
    items = "".join(_item(line, contents[line.number], policy) for line in lines)
    title = f"Index {escape(report.path)}"
    said = [*report.lines(), *(_reason(reason, count, report) for reason, count in report.skipped.items())]
    odd = "".join(f"<p>{escape(line)}</p>" for line in said) or "<p>Nothing was left out, and nothing looks odd.</p>"
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{title}</title><style>{STYLE}</style><h1>{title}</h1>"
        f"<p>{report.samples:,} samples in {report.shards:,} shards.</p>{odd}<h2>Examples</h2><ul>{items}</ul></html>\n"
    )


def _reason(reason: str, count: int, report: IndexReport) -> str:
    return f"{count:,} {reason}: {', '.join(report.examples.get(reason, []))}"


def _item(line: IndexLine, data: bytes | ReadFailure, policy: ImagePolicy) -> str:
    small = None if isinstance(data, ReadFailure) else thumbnail(data, policy)
    picture = '<span class="none">no picture</span>'
    if small is not None:
        picture = f'<img alt="" src="data:image/jpeg;base64,{b64encode(small).decode()}">'
    label = f" <b>{escape(line.label)}</b>" if line.label else ""
    return f"<li>{picture}{escape(line.key)}{label}<br><small>{escape(line.name)}</small></li>"
