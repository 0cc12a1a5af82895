"""The compose files and Dockerfiles as far as they can be checked without an engine: schemas, linter, and rules of ours."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

GIVEN = re.compile(r"\$\{[A-Z0-9_]+:\?set [A-Z0-9_]+ in \.env\}")  # no default: the stack doesn't start without it
SECRET = re.compile(r"TOKEN|PASSWORD|SECRET|ACCESS_KEY|API_KEY")
ONE_SHOT = {"bucket"}
PINNED = re.compile(r"^[\w./-]+:v?\d+\.\d+[\w.-]*$")


@pytest.fixture(scope="module")
def compose(root: Path) -> dict[str, Any]:
    return dict(yaml.safe_load((root / "docker-compose.yml").read_text()))


@pytest.fixture(scope="module")
def services(compose: dict[str, Any]) -> dict[str, Any]:
    return dict(compose["services"])


def tool(name: str) -> str:
    path = Path(sys.executable).parent / name
    if not path.exists():
        pytest.skip(f"{name} is not installed")
    return str(path)


def run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_compose_files_fit_the_schema(root: Path) -> None:
    files = [root / "docker-compose.yml", *sorted((root / "deploy/docker").glob("compose.*.yml"))]
    run(tool("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", *map(str, files))


def test_dockerfiles_pass_the_linter(root: Path) -> None:
    files = sorted((root / "deploy/docker").glob("Dockerfile.*"))
    assert len(files) == 3
    run(tool("hadolint"), *map(str, files))


def test_ports_are_published_on_this_machine_only(services: Mapping[str, Any]) -> None:
    ports = [port for service in services.values() for port in service.get("ports", [])]
    assert ports
    assert [port for port in ports if not str(port).startswith("127.0.0.1:")] == []


def test_every_service_has_a_health_check(services: Mapping[str, Any]) -> None:
    assert {name for name, service in services.items() if "healthcheck" not in service} == ONE_SHOT
    assert all(services[name]["restart"] == "no" for name in ONE_SHOT)


def test_what_a_service_waits_for_exists_and_can_become_ready(services: Mapping[str, Any]) -> None:
    for service in services.values():
        for name, how in service.get("depends_on", {}).items():
            awaited = "service_completed_successfully" if name in ONE_SHOT else "service_healthy"
            assert how["condition"] == awaited
            assert name in services


def test_no_secret_has_a_value(root: Path, services: Mapping[str, Any]) -> None:
    found = [(key, value) for service in services.values() for key, value in service.get("environment", {}).items()]
    secrets = [(key, value) for key, value in found if SECRET.search(key)]
    assert len({key for key, _ in secrets}) >= 4
    assert [key for key, value in secrets if not GIVEN.fullmatch(str(value))] == []
    in_urls = [part for _, value in found for part in re.findall(r"://[^/@:\s]+:(.+)@", str(value))]
    assert in_urls
    assert all(GIVEN.fullmatch(part) for part in in_urls)
    example = dict(line.split("=", 1) for line in (root / ".env.example").read_text().splitlines() if line and line[0] != "#")
    assert not any(example.values())


def test_every_variable_is_in_the_example(root: Path) -> None:
    text = "".join(path.read_text() for path in [root / "docker-compose.yml", *(root / "deploy/docker").glob("compose.*.yml")])
    required = set(re.findall(r"\$\{([A-Z0-9_]+):\?", text))
    example = (root / ".env.example").read_text()
    assert [name for name in required if not re.search(rf"^{name}=", example, re.MULTILINE)] == []


def test_images_are_pinned(root: Path, services: Mapping[str, Any]) -> None:
    assert [service["image"] for service in services.values() if not PINNED.match(service["image"])] == []
    for base in _bases(root):
        assert PINNED.match(base), base


def _bases(root: Path) -> Iterator[str]:
    for path in (root / "deploy/docker").glob("Dockerfile.*"):
        yield from re.findall(r"^FROM (\S+)", path.read_text(), re.MULTILINE)


def test_nothing_runs_as_root_or_with_capabilities(root: Path, services: Mapping[str, Any]) -> None:
    for name, service in services.items():
        assert service["cap_drop"] == ["ALL"], name
        assert "privileged" not in service
        if "build" in service:
            text = (root / service["build"]["dockerfile"]).read_text()
            assert re.findall(r"^USER (\S+)", text, re.MULTILINE)[-1:] == ["10001"], name
        elif not service["image"].startswith("swav-platform/"):
            assert not service["user"].startswith("0"), name


def test_images_copy_only_what_the_context_has(root: Path) -> None:
    allowed = [line[1:] for line in (root / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    for path in (root / "deploy/docker").glob("Dockerfile.*"):
        for words in re.findall(r"^COPY (?!--from)(.+)$", path.read_text(), re.MULTILINE):
            for source in words.split()[:-1]:
                assert source in allowed, f"{path.name} copies {source}"


def test_gpu_file_changes_services_that_exist(root: Path, services: Mapping[str, Any]) -> None:
    for path in (root / "deploy/docker").glob("compose.*.yml"):
        assert set(yaml.safe_load(path.read_text())["services"]) <= set(services)


def test_api_is_read_only_and_off_until_there_is_a_model(services: Mapping[str, Any]) -> None:
    assert services["api"]["read_only"] is True
    assert services["api"]["profiles"] == ["serve"]


def test_api_asks_for_keys(services: Mapping[str, Any]) -> None:
    assert "--keys=/keys/keys.json" in services["api"]["command"]
    assert [volume for volume in services["api"]["volumes"] if volume.endswith(":/keys:ro")]


def test_ray_has_shared_memory_and_a_token(services: Mapping[str, Any]) -> None:
    for name in ("ray-head", "data-worker", "train-worker"):
        assert services[name]["shm_size"].endswith("gb")
        assert services[name]["environment"]["RAY_AUTH_MODE"] == "token"
