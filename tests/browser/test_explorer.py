"""The explorer in headless Chromium: every view, keyboard alone, phone and desktop, a slow and a failing API."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import httpx
import pytest

from swav_platform.data.index.exclusions import Exclusions

pytestmark = pytest.mark.stack

VIEWS = ["clusters", "clusters/3", "search", "search?sample=5", "map", "review", "review?kind=outliers", "run"]


def visit(page: Any, url: str, view: str) -> None:
    page.goto(f"{url}/#/{view}")
    page.wait_for_selector("main h1")
    page.wait_for_load_state("networkidle")


def until(page: Any, expression: str) -> None:
    """Waits until it is true. The page's policy forbids Playwright's own way, which evaluates strings in the page."""
    for _ in range(300):
        if page.evaluate(expression):
            return
        page.wait_for_timeout(50)
    raise AssertionError(expression)


def test_every_view(page: Any, url: str) -> None:
    """No error, nothing from elsewhere, nothing wider than the window, no violation of accessibility rules."""
    from axe_playwright_python.sync_playwright import Axe

    for view in VIEWS:
        visit(page, url, view)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), view
        found = Axe().run(page).response["violations"]
        assert [(rule["id"], rule["nodes"][0]["html"]) for rule in found] == [], view
    assert page.seen.errors == []
    assert page.seen.hosts - {""} == {url.removeprefix("http://")}
    assert page.evaluate("window.hacked") is None, "a key is text, never HTML"


def test_pages_of_clusters_and_a_name(desktop: Any, url: str, folder: Path) -> None:
    visit(desktop, url, "clusters")
    assert desktop.locator(".sheet").count() == 48
    assert "of 3,000" in desktop.inner_text("main")
    desktop.get_by_label("Find").fill("12")
    until(desktop, "document.querySelectorAll('.sheet').length < 48 || document.body.innerText.includes('Cluster 12')")
    visit(desktop, url, "clusters/12")
    desktop.get_by_label("Name").fill("roses")
    desktop.get_by_role("button", name="Save name").click()
    desktop.wait_for_selector("h1:has-text('roses')")
    visit(desktop, url, "clusters")
    desktop.get_by_label("Find").fill("ROSES")
    until(desktop, "document.querySelectorAll('.sheet').length === 1")
    assert "roses" in (folder / "set" / "cluster-names.json").read_text()


def test_keyboard_alone(desktop: Any, url: str) -> None:
    visit(desktop, url, "clusters")
    desktop.keyboard.press("Tab")
    assert desktop.evaluate("document.activeElement.className") == "skip"
    for _ in range(2):
        desktop.keyboard.press("Tab")
    assert desktop.evaluate("document.activeElement.textContent") == "Clusters"
    desktop.keyboard.press("Tab")
    desktop.keyboard.press("Tab")
    desktop.keyboard.press("Enter")
    desktop.wait_for_selector(".plot")
    desktop.focus(".plot")
    before = desktop.evaluate("document.querySelector('canvas').toDataURL().length")
    for key in ("+", "+", "ArrowLeft", "ArrowUp"):
        desktop.keyboard.press(key)
    until(desktop, f"document.querySelector('canvas').toDataURL().length !== {before}")
    desktop.keyboard.press("Enter")
    desktop.wait_for_selector(".split .tile")
    desktop.keyboard.press("0")
    assert desktop.seen.errors == []


def test_lasso_gives_a_list_of_keys(desktop: Any, url: str) -> None:
    visit(desktop, url, "map")
    desktop.get_by_role("button", name="Lasso").click()
    box = desktop.locator(".plot").bounding_box()
    corners = [(0.02, 0.02), (0.98, 0.02), (0.98, 0.98), (0.02, 0.98)]
    points = [(box["x"] + a * box["width"], box["y"] + b * box["height"]) for a, b in corners]
    desktop.mouse.move(*points[0])
    desktop.mouse.down()
    for point in points[1:]:
        desktop.mouse.move(*point, steps=4)
    desktop.mouse.up()
    desktop.wait_for_selector("h2:has-text('images')")
    with desktop.expect_download() as saved:
        desktop.get_by_role("button", name="Download the list of keys").click()
    lines = Path(saved.value.path()).read_text().splitlines()
    assert len(lines) > 1900
    assert all(re.fullmatch(r"shard-00000\d\.tar\tphotos/.+", line) for line in lines)


def test_an_image_is_searched(desktop: Any, url: str, tmp_path: Path) -> None:
    from tests.makers import smooth

    (tmp_path / "a.jpg").write_bytes(smooth(1))
    (tmp_path / "b.jpg").write_bytes(b"no image")
    visit(desktop, url, "search")
    desktop.set_input_files("input[type=file]", str(tmp_path / "a.jpg"))
    desktop.wait_for_selector(".tile")
    assert desktop.locator("tbody tr").count() == 5
    desktop.set_input_files("input[type=file]", str(tmp_path / "b.jpg"))
    desktop.wait_for_selector("[role=alert]")
    assert "not_an_image" in desktop.inner_text("[role=alert]")


def test_an_excluded_sample_disappears(desktop: Any, url: str, folder: Path) -> None:
    """From clusters, neighbours and the map, and into the list that the next index takes."""
    visit(desktop, url, "review")
    desktop.get_by_role("button", name="Keep the first only").first.click()
    desktop.wait_for_selector(".tile.out")
    listed = Exclusions.of_file(folder / "set" / "exclude.txt")
    assert len(listed) == 2
    assert listed.may_cover("shard-000000.tar", "photos/00057")
    gone = httpx.get(f"{url}/v1/neighbors", params={"key": "photos/00057"})
    assert gone.status_code == 404
    near = httpx.get(f"{url}/v1/explorer/neighbors", params={"sample": 7, "k": 200}).json()["neighbors"]
    assert not {57, 107} & {item["sample"] for item in near}
    members = httpx.get(f"{url}/v1/clusters/7", params={"limit": 200}).json()
    assert (members["size"], len(members["members"])) == (38, 38)
    desktop.get_by_role("button", name=re.compile("^Keep photos")).first.click()
    until(desktop, "document.querySelectorAll('.tile.out').length === 1")
    assert httpx.get(f"{url}/v1/clusters/7").json()["size"] == 39


def test_a_slow_and_a_failing_api(desktop: Any, url: str) -> None:
    held: list[Any] = []
    desktop.route("**/v1/explorer/clusters?*", lambda route: held.append(route))
    desktop.goto(f"{url}/#/clusters")
    desktop.wait_for_selector(".state:has-text('Loading clusters')")
    held[0].fulfill(status=503, json={"error": {"code": "busy", "message": "The service is at capacity.", "detail": {}}})
    desktop.wait_for_selector("[role=alert]:has-text('at capacity')")
    desktop.unroute("**/v1/explorer/clusters?*")
    desktop.get_by_role("button", name="Try again").click()
    desktop.wait_for_selector(".sheet")
    desktop.route("**/v1/explorer/run", lambda route: route.abort())
    desktop.goto(f"{url}/#/run")
    desktop.wait_for_selector("[role=alert]:has-text('does not answer')")


def test_a_map_that_is_being_computed(desktop: Any, url: str) -> None:
    asked: list[int] = []

    def answer(route: Any) -> None:
        asked.append(1)
        route.fulfill(status=202, json={"state": "computing"}) if len(asked) == 1 else route.continue_()

    desktop.route("**/v1/explorer/map", answer)
    desktop.goto(f"{url}/#/map")
    desktop.wait_for_selector(".state:has-text('being computed')")
    desktop.wait_for_selector(".plot")
    assert len(asked) == 2
