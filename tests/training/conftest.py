from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

RIG = Path(__file__).parent / "rig.py"


@pytest.fixture(scope="session")
def rig() -> ModuleType:
    """rig.py, to be used in this process."""
    spec = importlib.util.spec_from_file_location("training_rig", RIG)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def whole(rig: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the run that nothing disturbed, of one process."""
    folder = tmp_path_factory.mktemp("whole")
    rig.train(rig.config(), folder)
    return folder


@pytest.fixture(scope="session")
def whole64(rig: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in float64."""
    folder = tmp_path_factory.mktemp("whole64")
    rig.train(rig.config(), folder, double=True)
    return folder


@pytest.fixture(scope="session")
def broken(rig: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a run of one process that broke down in step 6, with a checkpoint after step 4."""
    return _break(rig, tmp_path_factory.mktemp("broken"))


def _break(rig: ModuleType, folder: Path, double: bool = False) -> Path:
    with pytest.raises(ConnectionError):
        rig.train(rig.config(), folder, double=double, stop=6 * 8 + 3)
    return folder


@pytest.fixture(scope="session")
def ranks(rig: ModuleType, ranks_of: Callable[..., None], tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """Folder in which so many processes ran rig.py; once a session."""
    done: dict[int, Path] = {}

    def run(size: int) -> Path:
        if size not in done:
            folder = done[size] = tmp_path_factory.mktemp(f"ranks{size}")
            _break(rig, folder / "broken", double=True)
            ranks_of("small", size, folder)
        return done[size]

    return run


@pytest.fixture(scope="session")
def ranks_of(run_ranks: Callable[..., None]) -> Callable[..., None]:
    """ranks_of(program, size, folder): so many processes run a program of rig.py to its end."""
    return lambda program, size, folder: run_ranks(RIG, size, folder, program)
