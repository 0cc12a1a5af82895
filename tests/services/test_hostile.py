"""Odd images in every form, bombs and hostile bodies: only documented answers, quickly, and nothing stays in memory.

benchmarks/serve_fuzz.py sends all of them.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from tests.makers import smooth
from tests.services import hostile
from tests.services.hostile import Hostile, as_documented

SCALE = 1
QUICK = (
    "png_60000x60000",
    "png_iccp",
    "gif_65535x65535",
    "webp_16384x16384",
    "tiff_big_gigapixels",
    "jpeg_65500x65500",
)


@pytest.fixture(scope="module")
def codes(root: Path) -> dict[str, set[int]]:
    return hostile.documented(root)


def send(client: TestClient, request: Hostile, codes: dict[str, set[int]]) -> str:
    answer = client.post(request.path, content=request.body, headers={"content-type": request.kind, **request.headers})
    return as_documented(answer.status_code, answer.json(), codes)


def check(client: TestClient, image: bytes, codes: dict[str, set[int]]) -> str:
    """Sends an image in every form. All say the same of it."""
    told = {form: send(client, request, codes) for form, request in hostile.in_every_form(image).items()}
    [code] = set(told.values()) - ({"no_images"} if not image else set())  # an empty body is none at all
    assert image or told["raw"] == "no_images"
    return code


def test_odd_images_in_every_form(bare: TestClient, shared: Path, codes: dict[str, set[int]]) -> None:
    files = sorted(path for path in (shared / "data" / "odd-images").iterdir() if path.suffix != ".csv")
    found = [check(bare, path.read_bytes(), codes) for path in files[::17]]
    assert len(found) > 30
    assert "ok" in found
    assert len(set(found)) > 4


def test_an_odd_image_leaves_others_alone(bare: TestClient, shared: Path) -> None:
    good = smooth(77)
    for path in sorted((shared / "data" / "odd-images").glob("bad-*"))[::20]:
        request = hostile.beside(good, path.read_bytes())
        items = bare.post(request.path, content=request.body, headers={"content-type": request.kind}).json()["items"]
        assert ["embedding" in item for item in items] == [True, False], path.name


@pytest.mark.parametrize("name", QUICK)
def test_bombs(bare: TestClient, root: Path, codes: dict[str, set[int]], name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(root / "benchmarks"))
    from bombs import BOMBS  # type: ignore[import-not-found, unused-ignore]

    assert check(bare, BOMBS[name](), codes) not in ("ok", "decode_timeout", "decode_crash")


def test_hostile_bodies(service: TestClient, codes: dict[str, set[int]]) -> None:
    for name, make in hostile.bodies(SCALE):
        assert send(service, make(), codes) != "ok", name
    assert service.app.state.service.bodies.held == 0  # type: ignore[attr-defined]
    assert service.get("/readyz").status_code == 200
