"""The lock pins all that the project asks for, exactly, and names no place to fetch it from."""

from __future__ import annotations

import importlib.metadata as metadata
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


@pytest.fixture(scope="module")
def lock(root: Path) -> dict[str, Requirement]:
    lines = [line for line in (root / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    found = [Requirement(line) for line in lines]
    names = [canonicalize_name(pin.name) for pin in found]
    assert len(set(names)) == len(names)
    return dict(zip(names, found, strict=True))


def _version(pin: Requirement) -> str:
    (only,) = pin.specifier
    assert only.operator == "=="
    assert not re.search(r"[+*]", only.version)  # a build tag like +cpu would shut out other machines
    return only.version


def test_every_pin_is_exact(lock: dict[str, Requirement]) -> None:
    assert all(_version(pin) for pin in lock.values())


def test_the_project_is_satisfied(root: Path, lock: dict[str, Requirement]) -> None:
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    for text in (*project["dependencies"], *(t for extra in project["optional-dependencies"].values() for t in extra)):
        asked = Requirement(text)
        pin = lock[canonicalize_name(asked.name)]
        assert asked.specifier.contains(_version(pin)), f"{text}: the lock has {pin}"


def test_the_lock_is_closed(lock: dict[str, Requirement]) -> None:
    """What a pinned package needs is pinned too; scikit-image is there for its photographs only."""
    missing = []
    for name in lock:
        try:
            needed = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue
        for asked in map(Requirement, needed):
            wanted = asked.marker is None or asked.marker.evaluate({"extra": ""})
            cuda = name == "torch" and asked.name.startswith(("nvidia", "triton", "cuda"))
            if wanted and not cuda and name != "scikit-image" and canonicalize_name(asked.name) not in lock:
                missing.append(f"{name} needs {asked}")
    assert missing == []


def test_this_environment_follows_the_lock(lock: dict[str, Requirement]) -> None:
    wrong = []
    for name, pin in lock.items():
        try:
            have = metadata.version(name).split("+")[0]
        except metadata.PackageNotFoundError:
            continue
        if have != _version(pin):
            wrong.append(f"{name} is {have}, the lock has {_version(pin)}")
    assert wrong == []


@pytest.mark.parametrize("name", ["constraints.txt", "pyproject.toml", "deploy/setup.sh", "Makefile"])
def test_no_place_of_one_machine_is_named(root: Path, name: str) -> None:
    text = (root / name).read_text()
    assert not re.search(r"https?://|--index-url|--extra-index-url|--find-links|/root/|/home/", text)


def test_setup_script_parses_and_names_bad_pythons(root: Path, tmp_path: Path) -> None:
    for part in ("constraints.txt", "pyproject.toml", "deploy/setup.sh", "deploy/check_pillow.py"):
        (tmp_path / part).parent.mkdir(exist_ok=True)
        (tmp_path / part).write_text((root / part).read_text())
    old = tmp_path / "python-old"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    done = subprocess.run(
        ["bash", "deploy/setup.sh"],
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "PYTHON": str(old)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "not a working Python 3.11 or newer" in " ".join(done.stderr.split())
    assert not (tmp_path / ".venv").exists()
