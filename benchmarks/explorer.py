"""How long does the explorer take to show a set of 100,000 images in 3,000 clusters?

    python benchmarks/explorer.py [--samples 100000]

Needs Chromium. Takes about 2 minutes on 2 cores, most of it to write the set. Prints one JSON line; each figure is the median of
REPEATS visits with an empty cache, in seconds from the start of the navigation:

first_paint: the first text or picture (of the clusters); clusters: 48 contact sheets stand; map: all points are drawn, when the service
has computed the map; first_map: the same at the first visit, which computes it.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from playwright.sync_api import sync_playwright

from services.embeddings import server
from services.embeddings.settings import ServiceSettings
from tests.browser.conftest import CLUSTERS, make

REPEATS = 5

_DRAWN = "(() => { const c = document.querySelector('.plot canvas'); return c && c.dataset.points ? performance.now() : 0; })()"
_SHEETS = "document.querySelectorAll('.sheet').length >= 48 ? performance.now() : 0"
_PAINT = "(performance.getEntriesByName('first-contentful-paint')[0] || {startTime: 0}).startTime"


def visit(browser: Any, url: str, view: str, wanted: str) -> tuple[float, float]:
    """Seconds to the first paint, and until the expression `wanted` tells a time."""
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    page = context.new_page()
    page.goto(f"{url}/#/{view}", wait_until="commit")
    seen = 0.0
    while not seen:
        seen = page.evaluate(wanted)
        page.wait_for_timeout(5)
    paint = page.evaluate(_PAINT)
    context.close()
    return paint / 1000, seen / 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=100_000)
    options = parser.parse_args()
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    with tempfile.TemporaryDirectory() as name, sync_playwright() as play:
        folder = make(Path(name), options.samples, min(CLUSTERS, options.samples))
        browser = play.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        with server.serving(ServiceSettings(model=folder / "model", embeddings=folder / "set", threads=1)) as url:
            first_map = visit(browser, url, "map", _DRAWN)[1]
            sheets = [visit(browser, url, "clusters", _SHEETS) for _ in range(REPEATS)]
            maps = [visit(browser, url, "map", _DRAWN)[1] for _ in range(REPEATS)]
        browser.close()
    result = {
        "first_paint": round(statistics.median(paint for paint, _ in sheets), 3),
        "clusters": round(statistics.median(seen for _, seen in sheets), 3),
        "map": round(statistics.median(maps), 3),
        "first_map": round(first_map, 3),
        "samples": options.samples,
        "number_of_clusters": CLUSTERS,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
