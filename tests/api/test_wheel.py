"""The wheel works outside of a checkout: command, recipes, type information, and the Python lines of the documentation."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

import swav_platform

pytestmark = pytest.mark.stack  # builds and installs


@pytest.fixture(scope="module")
def installed(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of a new environment with the wheel. It sees the locked packages, but not the editable project."""
    folder = tmp_path_factory.mktemp("wheel")
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for part in ("swav_platform", "services", "configs"):
        shutil.copytree(root / part, folder / "tree" / part, ignore=ignored)
    for part in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(root / part, folder / "tree")
    options = ["--no-deps", "--no-build-isolation", "--no-index", "-q"]
    run(folder, sys.executable, "-m", "pip", "wheel", *options, "-w", str(folder), str(folder / "tree"))
    shutil.rmtree(folder / "tree")
    (wheel,) = folder.glob("*.whl")
    venv.create(folder / "venv", symlinks=True)
    python = folder / "venv" / "bin" / "python"
    run(folder, sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index", "-q", str(wheel))
    paths = {"base": str(folder / "venv"), "platbase": str(folder / "venv")}
    packages = Path(sysconfig.get_path("purelib", "venv", paths))
    (packages / "locked.pth").write_text(sysconfig.get_path("purelib") + "\n")  # a path in a .pth does not read that path's .pth
    return python.parent


def run(folder: Path, *command: str) -> str:
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "SWAV_OUT")}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_what_is_installed(installed: Path, work: Path, root: Path) -> None:
    code = """
import importlib.metadata, pathlib, swav_platform, services
from swav_platform.config import RECIPES, load
import swav_platform.cli.demo, swav_platform.cluster.pretrain
home = pathlib.Path(swav_platform.__file__).parent
assert (home / "py.typed").is_file() and (pathlib.Path(services.__file__).parent / "py.typed").is_file()
assert swav_platform.__version__ == importlib.metadata.version("swav-platform")
assert load("small.yaml").digest() == load("small").digest()
print(home, *sorted(path.name for path in RECIPES.glob("*.yaml")))
"""
    home, *recipes = run(work, str(installed / "python"), "-c", code).split()
    assert home.startswith(str(installed.parent))
    assert recipes == sorted(path.name for path in (root / "configs" / "pretrain").glob("*.yaml"))


def test_all_modules_are_in_the_wheel(installed: Path, root: Path) -> None:
    (packages,) = installed.parent.glob("lib/python*/site-packages")
    for top in ("swav_platform", "services"):
        own = {path.relative_to(root).as_posix() for path in (root / top).rglob("*.py")}
        assert own <= {path.relative_to(packages).as_posix() for path in (packages / top).rglob("*.py")}


def test_commands(installed: Path, work: Path) -> None:
    assert "pretrain" in run(work, str(installed / "swav"), "--help")
    assert swav_platform.__version__ in run(work, str(installed / "swav"), "--version")
    run(work, str(installed / "swav"), "pretrain", "small.yaml", "--data", "absent.tar", "--dry-run", "--json")
    done = subprocess.run([str(installed / "swav"), "doctor", "--json"], cwd=work, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1)  # 1: this machine has a problem
    assert '"torch"' in done.stdout.splitlines()[-1]


def test_documented_python_lines(installed: Path, work: Path, root: Path) -> None:
    lines = [line.removeprefix(">>> ") for line in (swav_platform.__doc__ or "").splitlines() if line.startswith(">>> ")]
    blocks = re.findall(r"```python\n(.*?)```", (root / "README.md").read_text(encoding="utf-8"), re.S)
    for code in ["\n".join(lines), *(block for block in blocks if "swav_platform.load" in block)]:
        assert "embed" in code
        run(work, str(installed / "python"), "-c", code)
