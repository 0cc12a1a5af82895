"""The house keeps its floors: no import upward, Ray in one room, MLflow in one file. Imports inside functions count too."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import pytest

FLOORS = {
    "": 0,  # swav_platform/__init__.py
    "config": 0,
    "errors": 0,
    "atomic": 0,
    "failures": 0,
    "malloc": 0,
    "child_process": 0,
    "client": 0,
    "data": 1,
    "runs": 1,
    "images": 2,
    "models": 2,
    "methods": 3,
    "rows": 3,
    "training": 4,
    "evaluation": 4,
    "neighbours": 4,
    "registry": 5,
    "locate": 6,
    "encoder": 6,
    "cluster": 6,
    "cli": 7,
    "__main__": 7,
}
FACADE = "encoder"  # swav_platform/__init__.py may import what this module may, and this module
SERVICES_MAY_IMPORT = {
    "",
    "config",
    "errors",
    "failures",
    "malloc",
    "atomic",
    "client",
    "runs",
    "data",
    "images",
    "models",
    "neighbours",
    "registry",
}

# package -> the only places (prefixes of paths) that may import it; None: everywhere but in `FORBIDDEN`
ONLY_IN = {"ray": ("swav_platform/cluster/", "services/embeddings/scale/"), "mlflow": ("swav_platform/registry/",)}
# rooms without torch: data tasks start often, and torch costs each of them two seconds
NO_TORCH = (
    "swav_platform/data/",
    "swav_platform/images/",
    "swav_platform/rows/",
    "swav_platform/client/",
    "swav_platform/errors.py",
    "swav_platform/failures.py",
    "swav_platform/config/",
    "swav_platform/runs/",
    "swav_platform/malloc.py",
    "swav_platform/child_process.py",
)
TORCH_ALLOWED = ("swav_platform/images/views/photometric.py",)


def faults(root: Path) -> list[str]:
    """One line for each import that breaks a rule, in all Python files of the house below `root`."""
    found = []
    for house in ("swav_platform", "services"):
        for path in sorted((root / house).rglob("*.py")):
            place = path.relative_to(root).as_posix()
            for line, name in imports(ast.parse(path.read_text(encoding="utf-8")), package=_package(place)):
                fault = _fault(place, name)
                if fault:
                    found.append(f"{place}:{line}: {fault}")
    return found


def imports(tree: ast.AST, package: str) -> Iterator[tuple[int, str]]:
    """Line and absolute dotted name of everything imported, `from a import b` as a.b (b may be a module)."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = package.split(".")
                base = ".".join([*parts[: len(parts) - node.level + 1], *([base] if base else [])])
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and _called(node.func) in ("import_module", "__import__") and node.args:
            argument = node.args[0]
            if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                yield node.lineno, argument.value


def _called(function: ast.expr) -> str:
    if isinstance(function, ast.Attribute):
        return function.attr
    return function.id if isinstance(function, ast.Name) else ""


def _package(place: str) -> str:
    return ".".join(Path(place).parent.parts)


def _room(name: str) -> str:
    """`swav_platform.data.order.plan.Plan` -> `data`; `swav_platform.__version__` -> ``; a room that nobody knows is itself."""
    part = name.split(".")[1] if "." in name else ""
    return part if part in FLOORS else "" if part.startswith("__") else part


def _fault(place: str, name: str) -> str | None:
    top = name.split(".")[0]
    if top in ONLY_IN and not place.startswith(ONLY_IN[top]):
        return f"imports {top}, which is for {' '.join(ONLY_IN[top])} only"
    if top == "torch" and place.startswith(NO_TORCH) and not place.startswith(TORCH_ALLOWED):
        return "imports torch, which this room does without"
    if place.startswith("services/"):
        if top == "swav_platform" and _room(name) not in SERVICES_MAY_IMPORT:
            return f"imports {name}: not for services"
        return None
    here = Path(place).parts[1].removesuffix(".py")
    if here == "__init__":  # offers the Python API by lazy imports, and is itself imported from everywhere
        here = FACADE
    if here not in FLOORS:
        return f"is in no room of the house: give {here} a floor"
    if top == "services" and here != "cli":
        return f"imports {name}: only the command line starts services"
    if top == "swav_platform" and FLOORS.get(_room(name), 99) > FLOORS[here]:
        return f"imports {name} (floor {FLOORS.get(_room(name), '?')}) from floor {FLOORS[here]}"
    return None


def cycles(root: Path) -> list[list[str]]:
    """Groups of modules that import each other in a circle. A module that is named in a string counts as imported."""
    files = {
        _module(path.relative_to(root)): path for house in ("swav_platform", "services") for path in (root / house).rglob("*.py")
    }
    graph = {name: _uses(name, path, files) for name, path in files.items()}
    reached = {name: _reached(name, graph) for name in graph}
    groups = {frozenset(other for other in reached[name] if name in reached[other]) for name in graph if name in reached[name]}
    return sorted(sorted(group) for group in groups)


def _module(path: Path) -> str:
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


def _uses(name: str, path: Path, files: Collection[str]) -> set[str]:
    """Modules of this project that a file imports, at its top or inside of functions, or names in a string constant."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    named = [imported for _, imported in imports(tree, package)]
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            named += re.findall(r"\b(?:swav_platform|services)(?:\.\w+)+", node.value)
    found = set()
    for full in named:
        while full and full not in files:
            full = full.rpartition(".")[0]
        if full.count(".") and full != name:
            found.add(full)
    return found


def _reached(start: str, graph: Mapping[str, set[str]]) -> set[str]:
    """Modules that can be reached from one, itself among them only by a circle."""
    reached: set[str] = set()
    waiting = [start]
    while waiting:
        fresh = graph[waiting.pop()] - reached
        reached |= fresh
        waiting += fresh
    return reached


def test_no_import_cycle(root: Path) -> None:
    assert cycles(root) == []


@pytest.mark.parametrize(
    ("place", "line"),
    [
        ("swav_platform/data/order/plan.py", "from swav_platform.data.order import streams"),
        ("swav_platform/data/order/plan.py", "def late():\n    from swav_platform.data.order.streams import Streams"),
        ("swav_platform/images/decoding/pillow.py", "START = 'from swav_platform.images.decoding.confined import decode'"),
        ("swav_platform/images/decoding/child.py", "import importlib; importlib.import_module('swav_platform.rows.make')"),
    ],
)
def test_planted_cycle_is_reported(root: Path, tmp_path: Path, place: str, line: str) -> None:
    for house in ("swav_platform", "services"):
        shutil.copytree(root / house, tmp_path / house, ignore=shutil.ignore_patterns("__pycache__"))
    with (tmp_path / place).open("a", encoding="utf-8") as file:
        file.write(f"\n\n{line}\n")
    [found] = cycles(tmp_path)
    assert _module(Path(place)) in found
    assert len(found) > 1


def test_floors_are_kept(root: Path) -> None:
    assert faults(root) == []


@pytest.mark.parametrize(
    ("place", "line", "complaint"),
    [
        ("swav_platform/data/order/plan.py", "from swav_platform.images.decoding.decode import decode", "(floor 2) from floor 1"),
        ("swav_platform/methods/sinkhorn.py", "import swav_platform.training.loop", "(floor 4) from floor 3"),
        ("swav_platform/training/step.py", "from ..cluster import stream", "(floor 6) from floor 4"),
        ("swav_platform/models/heads.py", "from .. import registry", "(floor 5) from floor 2"),
        ("swav_platform/config/schema.py", "from swav_platform import data", "(floor 1) from floor 0"),
        (
            "swav_platform/images/decoding/decode.py",
            "def late():\n    from swav_platform import training",
            "(floor 4) from floor 2",
        ),
        ("swav_platform/models/heads.py", "import importlib; importlib.import_module('swav_platform.cli.main')", "(floor 7)"),
        ("swav_platform/training/step.py", "def late():\n    import ray.data", "imports ray"),
        ("swav_platform/cli/main.py", "from ray import init", "imports ray"),
        ("swav_platform/cluster/train.py", "import mlflow", "imports mlflow"),
        ("services/embeddings/app.py", "def late():\n    from mlflow import MlflowClient", "imports mlflow"),
        ("swav_platform/data/order/plan.py", "import torch", "imports torch"),
        ("swav_platform/images/views/crops.py", "from torch import nn", "imports torch"),
        ("services/embeddings/app.py", "from swav_platform.training import loop", "not for services"),
        ("services/embeddings/app.py", "from swav_platform.evaluation.knn import knn", "not for services"),
        ("swav_platform/evaluation/knn.py", "import services.embeddings.app", "only the command line"),
        ("swav_platform/attic/old.py", "import os", "no room of the house"),
    ],
)
def test_planted_import_is_reported(root: Path, tmp_path: Path, place: str, line: str, complaint: str) -> None:
    for house in ("swav_platform", "services"):
        shutil.copytree(root / house, tmp_path / house, ignore=shutil.ignore_patterns("__pycache__"))
    planted = tmp_path / place
    planted.parent.mkdir(exist_ok=True)
    with planted.open("a", encoding="utf-8") as file:
        file.write(f"\n\n{line}\n")
    found = faults(tmp_path)
    assert len(found) == 1
    assert found[0].startswith(place)
    assert complaint in found[0]


@pytest.mark.parametrize(
    ("modules", "unwanted"),
    [
        ("swav_platform/data swav_platform/images swav_platform/rows", ("torch", "ray", "mlflow")),
        ("services/embeddings", ("ray", "mlflow")),
        ("swav_platform/cli/main.py", ("torch", "ray", "mlflow", "pyarrow")),
        ("swav_platform/cluster/segments.py", ("torch", "mlflow", "numba", "simplejpeg")),
    ],
)
def test_imports_do_not_bring_in_more_by_the_way(root: Path, modules: str, unwanted: tuple[str, ...]) -> None:
    """What a file imports may import more in turn: asked of a fresh interpreter."""
    files = [f for m in modules.split() for f in ([root / m] if m.endswith(".py") else sorted((root / m).rglob("*.py")))]
    names = [
        ".".join(f.relative_to(root).with_suffix("").parts) for f in files if f.name not in ("photometric.py", "__main__.py")
    ]
    code = f"import sys\nfor name in {names}: __import__(name)\nprint([m for m in {unwanted} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr[-2000:]
