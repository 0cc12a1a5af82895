"""The service does what its OpenAPI document says, whatever is sent."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from services.embeddings.app import create_app
from services.embeddings.edge import keys
from services.embeddings.server import serving
from services.embeddings.settings import ServiceSettings
from tests.services.test_bad_input import refused
from tests.services.test_keys import OPEN

HOOKS = "tests.services.openapi_hooks"


def schemathesis(url: str, key: str, folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    """Runs all checks of schemathesis against a service whose key has all scopes."""
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{url}/openapi.json", "-H", f"Authorization: Bearer {key}"]
    command += ["--checks", "all", "--continue-on-failure", "--warnings", "off", "--no-color", *more]
    root = Path(__file__).parents[2]
    environment = {**os.environ, "SCHEMATHESIS_HOOKS": HOOKS, "SWAV_TEST_KEY": key, "PYTHONPATH": str(root), "COLUMNS": "200"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=600)


@pytest.mark.stack
def test_all_checks_of_schemathesis(package: Path, stored: Path, tmp_path: Path) -> None:
    text, key = keys.make("a", keys.SCOPES)
    keys.write(tmp_path / "keys.json", {key.id: key})
    own = shutil.copytree(stored, tmp_path / "set")  # items are added to it
    with serving(ServiceSettings(model=package, embeddings=own, threads=1, keys=tmp_path / "keys.json")) as url:
        done = schemathesis(url, text, tmp_path, "--phases", "coverage,fuzzing", "--max-examples", "1", "--seed", "1")
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-1000:]
    assert "17 passed" in done.stdout


def test_errors_and_keys_are_documented(service: TestClient, package: Path, tmp_path: Path) -> None:
    _, key = keys.make("a", ["embed"])
    keys.write(tmp_path / "keys.json", {key.id: key})
    settings = ServiceSettings(model=package, threads=1, keys=tmp_path / "keys.json")
    guarded, plain = create_app(settings).openapi(), service.get("/openapi.json").json()
    assert "securitySchemes" not in plain["components"]
    assert "HTTPValidationError" not in plain["components"]["schemas"]
    for document, keyed in ((guarded, True), (plain, False)):
        for path, methods in document["paths"].items():
            for operation in methods.values():
                codes = set(operation["responses"])
                assert "422" in codes
                assert ({"401", "403", "429"} <= codes) == ("security" in operation) == (keyed and path not in OPEN), path
                for code in codes - {"200"}:
                    schema = operation["responses"][code]["content"]["application/json"]["schema"]
                    assert schema == {"$ref": "#/components/schemas/ErrorAnswer"}, (path, code)


def test_a_route_of_its_own_has_only_its_own_methods(service: TestClient) -> None:
    for method in ("GET", "OPTIONS", "DELETE"):
        response = service.request(method, "/v1/models/reload")
        refused(response, 405, "method_not_allowed")
        assert response.headers["allow"] == "POST"
    refused(service.get("/v1/models/reload2"), 404, "no_such_model")


def test_whole_numbers_with_a_fraction_of_zero(service: TestClient, pictures: list[bytes]) -> None:
    """JSON Schema calls 2.0 an integer."""
    body = {"images": ["data:;base64,"], "top": 2.5}
    refused(service.post("/v1/clusters", json=body), 422, "invalid_request")
    refused(service.post("/v1/clusters", json=body | {"top": 2.0}), 422, "not_an_image")
    for huge in ("1e400", "-1e400", "NaN", "1" + "0" * 400, "1" * 5000):
        text = f'{{"images": ["data:;base64,"], "top": {huge}}}'
        response = service.post("/v1/clusters", content=text, headers={"content-type": "application/json"})
        refused(response, 422, "invalid_request")
