"""deploy/setup.sh in copies of the project, with a Python that installs nothing: which .venv it builds, updates, and leaves alone."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

# `-m venv DIR` makes an environment whose python is this script; `-m pip` succeeds unless the file FAIL exists.
FAKE_PYTHON = """#!/bin/bash
case "$*" in
  --version) echo "Python 3.11.0" ;;
  "-m venv "*)
    [ -L "${@: -1}" ] && { echo "Unable to create directory" >&2; exit 1; }
    mkdir -p "${@: -1}/bin" && cp "$0" "${@: -1}/bin/python" && echo "VIRTUAL_ENV=${@: -1}" >"${@: -1}/bin/activate"
    touch "${@: -1}/pyvenv.cfg" ;;
  *install*) [ ! -e FAIL ] ;;
esac
"""


@pytest.fixture
def project(root: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    for part in ("constraints.txt", "pyproject.toml", "Makefile", "deploy/setup.sh", "deploy/check_pillow.py"):
        (folder / part).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(root / part, folder / part)
    python = tmp_path / "fake-python"
    python.write_text(FAKE_PYTHON)
    python.chmod(0o755)
    return folder


def setup(project: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": "/usr/bin:/bin", "PYTHON": str(project.parent / "fake-python"), "SWAV_SIMD": "off", "SWAV_APT": "0"}
    return subprocess.run(
        ["bash", "deploy/setup.sh", *arguments], cwd=project, env=environment, capture_output=True, text=True, check=False
    )


def made(project: Path) -> bool:
    """Whether .venv is complete; the second run then prints nothing."""
    again = setup(project)
    return (project / ".venv/bin/python").is_file() and (again.returncode, again.stdout, again.stderr) == (0, "", "")


def contents(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_it_builds_once(project: Path) -> None:
    done = setup(project)
    assert done.returncode == 0, done.stderr
    assert made(project)


def as_conda(venv: Path) -> None:
    (venv / "conda-meta").mkdir(parents=True)


def as_uv(venv: Path) -> None:
    venv.mkdir()
    (venv / "pyvenv.cfg").write_text("home = /usr/bin\nuv = 0.9.1\n")


def as_virtualenv(venv: Path) -> None:
    venv.mkdir()
    (venv / "pyvenv.cfg").write_text("home = /usr/bin\nvirtualenv = 20.1\n")


def as_venv(venv: Path) -> None:
    venv.mkdir()
    (venv / "pyvenv.cfg").write_text("home = /usr/bin\n")


def as_folder(venv: Path) -> None:
    venv.mkdir()
    (venv / "thesis.tex").touch()


def as_link_to_a_folder(venv: Path) -> None:
    as_folder(venv.parent.parent / "elsewhere")
    venv.symlink_to("../elsewhere")


def as_dangling_link(venv: Path) -> None:
    venv.symlink_to("../nowhere")


def as_file(venv: Path) -> None:
    venv.write_text("mine")


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (as_conda, "conda"),
        (as_uv, "uv"),
        (as_virtualenv, "virtualenv"),
        (as_venv, "python -m venv"),
        (as_folder, "other files"),
        (as_link_to_a_folder, "link to ../elsewhere"),
        (as_dangling_link, "does not exist"),
        (as_file, "a file"),
    ],
)
def test_an_environment_of_another_origin_is_left_alone(project: Path, make: Callable[[Path], None], kind: str) -> None:
    make(project / ".venv")
    before = contents(project.parent)
    done = setup(project)
    assert done.returncode == 1
    message = " ".join(done.stderr.split())
    assert kind in message
    assert "pip install -c constraints.txt" in message
    assert ("rm .venv" if "link" in make.__name__ else "mv .venv") in message
    assert setup(project, "clean").returncode == 0
    assert [name for name in contents(project.parent) if name != "project/.swav-setup"] == before


def test_it_builds_through_a_link_to_an_empty_folder(project: Path) -> None:
    disk = project.parent / "disk"
    disk.mkdir()
    (project / ".venv").symlink_to(disk)
    done = setup(project)
    assert done.returncode == 0, done.stderr
    assert (project / ".venv").is_symlink()
    assert (disk / "bin/python").is_file()
    assert made(project)
    assert setup(project, "clean").returncode == 0
    assert (project / ".venv").is_symlink()
    assert contents(disk) == []


def test_its_own_environment_may_be_moved_to_another_disk(project: Path) -> None:
    setup(project)
    shutil.move(project / ".venv", project.parent / "disk")
    (project / ".venv").symlink_to(project.parent / "disk")
    assert made(project)
    with (project / "constraints.txt").open("a") as constraints:
        constraints.write("# changed\n")
    assert setup(project).returncode == 0
    assert made(project)


def test_an_interrupted_set_up_is_continued(project: Path) -> None:
    (project / "FAIL").touch()
    failed = setup(project)
    assert failed.returncode == 1
    assert "run the same command again" in " ".join(failed.stderr.split())
    (project / ".venv/bin/python").unlink()  # as if interrupted before
    (project / "FAIL").unlink()
    assert setup(project).returncode == 0
    assert made(project)


def test_a_moved_project_rebuilds_its_environment(project: Path) -> None:
    setup(project)
    (project / ".venv/stale").touch()
    moved = project.rename(project.parent / "moved")
    assert setup(moved).returncode == 0
    assert not (moved / ".venv/stale").exists()
    assert made(moved)


def test_a_copy_does_not_change_the_environment_behind_a_copied_link(project: Path) -> None:
    disk = project.parent / "disk"
    disk.mkdir()
    (project / ".venv").symlink_to(disk)
    setup(project)
    before = contents(disk)
    copy = shutil.copytree(project, project.parent / "copy", symlinks=True)
    done = setup(copy)
    assert done.returncode == 1
    assert str(project) in done.stderr.replace("\n", "")
    setup(copy, "clean")
    assert contents(disk) == before
    assert made(project)


def test_clean_removes_its_own_environment(project: Path) -> None:
    setup(project)
    assert setup(project, "clean").returncode == 0
    assert not (project / ".venv").exists()
