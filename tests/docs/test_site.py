"""The documentation site builds in strict mode, without anything from elsewhere."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def site(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site; strict mode fails for a broken link or anchor."""
    pytest.importorskip("zensical")
    out = tmp_path_factory.mktemp("docs")
    done = subprocess.run([sys.executable, root / "docs" / "build.py", "--out", out], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return out / "site"


def test_start_page_is_readme(site: Path) -> None:
    page = (site / "index.html").read_text(encoding="utf-8")
    assert "make test" in page
    assert 'href="install.html' in page
    assert (site / "images" / "demo-report.png").is_file()


def test_api_reference_has_signatures_and_docstrings(site: Path) -> None:
    text = " ".join(re.sub(r"<[^>]+>", "", (site / "api.html").read_text(encoding="utf-8")).split())
    assert "class Client( base_url: str, timeout: float = 30.0," in text
    assert "def neighbors_of( key: str, k: int = 10," in text
    assert "def embed(images: list[ImageInput]) -&gt; np.ndarray" in text
    assert "RowOutputs" in text


def test_pages_load_nothing_from_elsewhere(site: Path) -> None:
    for page in site.glob("*.html"):
        loaded = re.findall(
            r"<(?:script|link|img|iframe)\b[^>]*(?:src|href)=\"?((?:https?:)?//[^\s\">]+)", page.read_text(encoding="utf-8")
        )
        assert loaded == [], page.name
