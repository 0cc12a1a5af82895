"""API keys: who may ask what, and that a change of the file needs no restart."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from fastapi.testclient import TestClient

from services.embeddings.app import create_app
from services.embeddings.edge import access, keys
from services.embeddings.explorer.routes import router as explorer
from services.embeddings.settings import ServiceSettings
from swav_platform.cli.main import swav
from swav_platform.errors import UsageError, UserError
from tests.services.test_bad_input import JPEG, refused

EMBED, SEARCH, ADMIN = {"embed"}, {"search"}, {"admin"}
ROUTES: list[tuple[str, str, set[str]]] = [
    ("POST", "/v1/embeddings", EMBED),
    ("POST", "/embeddings", EMBED),
    ("POST", "/v2/embed", EMBED),
    ("POST", "/v1/clusters", EMBED),
    ("POST", "/v1/neighbors", SEARCH),
    ("GET", "/v1/neighbors", SEARCH),
    ("GET", "/v1/clusters", SEARCH),
    ("GET", "/v1/clusters/1", SEARCH),
    ("POST", "/v1/items", ADMIN),
    ("DELETE", "/v1/items/1", ADMIN),
    ("POST", "/v1/models/reload", ADMIN),
    ("GET", "/v1/models", set()),
    ("GET", "/v1/models/1", set()),
    ("GET", "/version", set()),
    ("GET", "/metrics", set()),
    *[
        ("GET", f"/v1/explorer{path}", SEARCH)
        for path in (
            "",
            "/clusters",
            "/clusters/1",
            "/items",
            "/neighbors",
            "/map",
            "/duplicates",
            "/outliers",
            "/exclusions",
            "/run",
        )
    ],
    ("POST", "/v1/explorer/list", SEARCH),
    ("POST", "/v1/explorer/exclusions", SEARCH | ADMIN),
    ("PUT", "/v1/explorer/clusters/1/name", SEARCH | ADMIN),
]
"""Method, path and scopes of every route that is not open. `{…}` is 1."""

OPEN = {"/", "/docs", "/openapi.json", "/healthz", "/readyz"}


def swav_keys(*arguments: object) -> dict[str, Any]:
    done = CliRunner().invoke(swav, ["keys", *map(str, arguments), "--json"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return dict(json.loads(done.stdout.splitlines()[-1]))


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("keys") / "keys.json"


@pytest.fixture(scope="module")
def guarded(package: Path, stored: Path, file: Path) -> Iterator[TestClient]:
    swav_keys("create", file, "--name", "first")
    own = shutil.copytree(stored, file.parent / "set")  # a key with `admin` deletes from it
    with TestClient(create_app(ServiceSettings(model=package, embeddings=own, threads=1, keys=file))) as client:
        client.app.state.guard._looked = float("inf")  # type: ignore[attr-defined]
        yield client


@pytest.fixture
def key(guarded: TestClient, file: Path, request: pytest.FixtureRequest) -> Any:
    """key(scopes, *more): a new key that the running service knows."""

    def new(scopes: str, *more: object) -> str:
        name = f"key{len(keys.read(file))}"
        text = str(swav_keys("create", file, "--name", name, "--scopes", scopes, *more)["key"])
        look(guarded)
        return text

    return new


def look(client: TestClient) -> None:
    """Lets the service look at its key file at the next request, as it does after a second."""
    client.app.state.guard._looked = float("-inf")  # type: ignore[attr-defined]


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": "Bearer "},
        {"authorization": "Basic dXNlcjpwYXNz"},
        {"authorization": "Bearer swav_000000000000_" + "A" * 43},
        {"authorization": "Bearer é".encode()},
        {"x-api-key": "swav_" + "A" * 100_00},
    ],
)
def test_missing_and_wrong_keys(guarded: TestClient, headers: dict[str, str], pictures: list[bytes]) -> None:
    for method, path in (("POST", "/v1/embeddings"), ("GET", "/v1/clusters"), ("GET", "/metrics")):
        response = guarded.request(method, path, headers=headers)
        refused(response, 401, "unauthorized")
        assert response.headers["www-authenticate"] == "Bearer"


def test_a_stranger_s_body_is_not_read(guarded: TestClient) -> None:
    async def ask(method: str, path: str) -> int:
        """The status, of a client that never sends its body."""
        scope = {"type": "http", "method": method, "path": path, "raw_path": path.encode(), "query_string": b"", "root_path": ""}
        scope |= {
            "headers": [(b"content-type", b"application/json")],
            "http_version": "1.1",
            "scheme": "http",
            "server": ("x", 1),
        }
        told: list[Any] = []

        async def receive() -> Any:
            await asyncio.sleep(60)

        async def send(message: Any) -> None:
            told.append(message)

        await asyncio.wait_for(guarded.app(scope, receive, send), 5)
        return int(told[0]["status"])

    assert guarded.portal is not None
    for method, path, _ in ROUTES:
        assert guarded.portal.call(ask, method, path) == 401, path


def test_scopes(guarded: TestClient, key: Any, pictures: list[bytes]) -> None:
    embed, search, both = key("embed"), key("search"), key("search,images")
    post = {"content": pictures[0], "headers": JPEG | bearer(embed)}
    assert guarded.post("/v1/embeddings", **post).status_code == 200
    assert guarded.post("/v1/clusters", **post).status_code == 200
    error = refused(guarded.post("/v1/neighbors", **post), 403, "forbidden")
    assert error["detail"] == {"needed": "search", "scopes": ["embed"]}
    refused(guarded.get("/v1/clusters", headers=bearer(embed)), 403, "forbidden")
    refused(guarded.post("/v1/embeddings", content=pictures[0], headers=JPEG | bearer(search)), 403, "forbidden")
    assert guarded.get("/v1/models", headers={"x-api-key": search}).status_code == 200

    query = "/v1/neighbors?key=0003&k=2"
    shown = [guarded.get(query, headers=bearer(k)).json()["neighbors"][0]["thumbnail"] is not None for k in (search, both)]
    assert shown == [False, True]
    refused(guarded.get(query + "&thumbnails=true", headers=bearer(search)), 403, "forbidden")
    members = [guarded.get("/v1/clusters/1", headers=bearer(k)).json()["members"] for k in (search, both)]
    assert {m["thumbnail"] for m in members[0]} <= {None}
    assert [m["sample"] for m in members[0]] == [m["sample"] for m in members[1]]


def test_every_route_has_a_scope_or_is_open_on_purpose(guarded: TestClient) -> None:
    """Also the routes that do not exist yet when this is written."""
    paths = guarded.get("/openapi.json").json()["paths"]
    routes = {(method.upper(), path) for path, methods in paths.items() for method in methods}
    routes |= {(method, route.path) for route in explorer.routes for method in route.methods}  # type: ignore[attr-defined]
    told = {(method, re.sub(r"/1\b", lambda _: "/{…}", path)) for method, path, _ in ROUTES}
    assert {(method, re.sub(r"{\w+}", "{…}", path)) for method, path in routes if path not in OPEN} == told
    assert all(guarded.get(path).status_code == 200 for path in OPEN)


def test_scopes_of_every_route(guarded: TestClient, key: Any) -> None:
    """A key with all scopes but one is refused where that one is needed, and a wrong or missing key everywhere."""
    lacking = {scope: key(",".join(set(keys.SCOPES) - {scope})) for scope in keys.SCOPES}
    for method, path, scopes in ROUTES:
        for headers in ({}, bearer("swav_000000000000_" + "A" * 43)):
            refused(guarded.request(method, path, headers=headers), 401, "unauthorized")
        for scope, text in lacking.items():
            response = guarded.request(method, path, headers=bearer(text))
            if scope in scopes:
                assert refused(response, 403, "forbidden")["detail"]["needed"] == scope
            else:
                assert response.status_code not in (401, 403), (method, path, scope)


def test_revoked_while_running(guarded: TestClient, key: Any, file: Path) -> None:
    text = key("search", "--per-minute", 1000)
    assert guarded.get("/v1/clusters", headers=bearer(text)).status_code == 200
    swav_keys("revoke", file, text.split("_")[1])
    look(guarded)
    refused(guarded.get("/v1/clusters", headers=bearer(text)), 401, "unauthorized")


def test_a_damaged_file_locks_nobody_out(guarded: TestClient, key: Any, file: Path) -> None:
    text, content = key("search"), file.read_bytes()
    assert guarded.get("/v1/models", headers=bearer(text)).status_code == 200
    for damage in (content[:50], b"{}", b'{"version": 9, "keys": []}', b'{"version": 1, "keys": [{"id": 1}]}'):
        file.write_bytes(damage)
        look(guarded)
        assert guarded.get("/v1/models", headers=bearer(text)).status_code == 200
    file.write_bytes(content)


def test_rate(guarded: TestClient, key: Any, pictures: list[bytes]) -> None:
    text = key("embed", "--per-minute", 3)
    files = [("images", ("x", pictures[0]))]
    assert guarded.post("/v1/embeddings", files=files * 4, headers=bearer(text)).status_code == 200  # may overdraw
    response = guarded.post("/v1/embeddings", files=files, headers=bearer(text))
    refused(response, 429, "too_many_requests")
    assert 20 < int(response.headers["retry-after"]) <= 40
    assert guarded.get("/healthz").status_code == 200


def test_expiry_and_comparison() -> None:
    now = datetime.now(UTC)
    text, key = keys.make("a", ["embed"], expires=now + timedelta(days=1))
    known = {key.id: key}
    assert keys.find(known, text, now) == key
    assert keys.find(known, text, now + timedelta(days=2)) is None
    for wrong in (text[:-1], text + "A", text.upper(), text.replace("_", "-"), "", text.replace(key.id, "0" * 12)):
        assert keys.find(known, wrong, now) is None
    assert text.split("_", 2)[2] not in keys.dumps(known)
    assert keys.loads(keys.dumps(known), "x") == known


def test_comparison_takes_the_same_steps_for_every_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """One hash and one comparison in constant time, also for keys that nobody has: nothing to measure."""
    text, key = keys.make("a", ["embed"])
    compared = []
    monkeypatch.setattr(keys.hmac, "compare_digest", lambda a, b: compared.append((len(a), len(b))) or a == b)
    for given in (text, text[:-1] + "!", "nonsense", text.replace(key.id, "0" * 12)):
        keys.find({key.id: key}, given)
    assert compared == [(64, 64)] * 4


def test_keys_of_the_environment(tmp_path: Path) -> None:
    text, key = keys.make("a", ["embed"])
    guard = access.open_guard(None, {"SWAV_API_KEYS": keys.dumps({key.id: key})})
    assert guard.known == {key.id: key}
    assert access.open_guard(None, {}).known is None
    with pytest.raises(UserError, match="SWAV_API_KEYS"):
        access.open_guard(None, {"SWAV_API_KEYS": text})
    with pytest.raises(UserError, match="swav keys create"):
        access.open_guard(tmp_path / "none.json", {})


@pytest.mark.parametrize(
    "arguments", [["--name", "a b"], ["--name", "a", "--scopes", "embd"], ["--name", "a", "--scopes", ","], ["--name", "first"]]
)
def test_wrong_use_of_the_command(guarded: TestClient, file: Path, arguments: list[str]) -> None:
    with pytest.raises(UsageError):
        CliRunner().invoke(swav, ["keys", "create", str(file), *arguments], catch_exceptions=False)


@pytest.mark.parametrize(
    ("arguments", "variable", "words"),
    [
        (["--host", "0.0.0.0"], "", "--no-auth"),
        (["--host", "::"], "", "--no-auth"),
        (["--host", "203.0.113.5"], "", "--no-auth"),
        (["--host", "0.0.0.0", "--no-auth"], "{}", "contradicts"),
        (["--host", "0.0.0.0", "--keys", "no-such.json"], "", "swav keys create"),
    ],
)
def test_strangers_need_a_decision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], variable: str, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(os.environ, "SWAV_API_KEYS", variable)
    with pytest.raises(UserError, match=words):
        CliRunner().invoke(swav, ["serve", "no-such-run", *arguments], catch_exceptions=False)


@pytest.mark.parametrize("arguments", [[], ["--host", "localhost"], ["--host", "::1"], ["--host", "0.0.0.0", "--no-auth"]])
def test_decided(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str]) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="no-such-run"):  # gets as far as the model
        CliRunner().invoke(swav, ["serve", "no-such-run", "--port", "0", *arguments], catch_exceptions=False)
