from __future__ import annotations

import json
import resource
from pathlib import Path

import pytest
import torch

from swav_platform.errors import UserError
from swav_platform.training.checkpoints.store import MANIFEST, Snapshot, is_valid, latest_valid, load, prune, save

FILES = ["model.safetensors", "optimizer.safetensors", "method.safetensors", "state.json"]


def snapshot(steps: int, size: int = 10) -> Snapshot:
    numbers = torch.arange(size, dtype=torch.float32)
    conv = torch.randn(4, 3, 2, 2).contiguous(memory_format=torch.channels_last)
    return Snapshot(steps, {"a": numbers, "conv": conv}, {"a/step": torch.tensor(3.0)}, {"rows": torch.zeros(0)}, {"x": 1.5})


def test_there_and_back(tmp_path: Path) -> None:
    given = snapshot(1234)
    path = save(tmp_path / "checkpoints", given)
    assert path.name == "step-000001234"
    assert sorted(p.name for p in path.iterdir()) == sorted([*FILES, MANIFEST])
    manifest = json.loads((path / MANIFEST).read_text())
    assert [set(f) for f in manifest["files"]] == [{"name", "size", "sha256"}] * len(FILES)
    found = load(path)
    assert found.steps == 1234
    assert torch.equal(found.model["conv"], given.model["conv"])
    assert (found.optimizer["a/step"].shape, found.method["rows"].shape, found.ledger) == ((), (0,), b"")
    assert found.state["x"] == 1.5


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["gone", "cut", "changed"])
def test_damage_to_any_file_is_seen(tmp_path: Path, name: str, damage: str) -> None:
    old, new = save(tmp_path, snapshot(1)), save(tmp_path, snapshot(2))
    assert latest_valid(tmp_path) == new
    data = (new / name).read_bytes()
    if damage == "gone":
        (new / name).unlink()
    else:
        (new / name).write_bytes(data[:-1] if damage == "cut" else data[:-1] + bytes([data[-1] ^ 1]))
    assert not is_valid(new)
    assert latest_valid(tmp_path) == old


@pytest.mark.parametrize("text", [None, "", "{", "[]", "{}", '{"files": []}', '{"files": [{}]}', '{"files": 3}'])
def test_without_a_whole_manifest_it_does_not_exist(tmp_path: Path, text: str | None) -> None:
    old, path = save(tmp_path, snapshot(1)), save(tmp_path, snapshot(2))
    (path / MANIFEST).unlink()
    if text is not None:
        (path / MANIFEST).write_text(text)
    assert latest_valid(tmp_path) == old


def test_a_crash_in_the_first_one_leaves_nothing_but_damage_is_told(tmp_path: Path) -> None:
    path = save(tmp_path, snapshot(1))
    manifest = (path / MANIFEST).read_bytes()
    (path / MANIFEST).unlink()
    assert latest_valid(tmp_path) is None
    (path / MANIFEST).write_bytes(manifest)
    (path / "state.json").write_text("")
    with pytest.raises(UserError, match=r"step-000000001.*delete"):
        latest_valid(tmp_path)


def test_nothing_there(tmp_path: Path) -> None:
    (tmp_path / "step-7").mkdir()
    (tmp_path / "notes").mkdir()
    assert latest_valid(tmp_path) is None
    assert latest_valid(tmp_path / "nowhere") is None


def test_half_written_ones_are_written_over(tmp_path: Path) -> None:
    path = save(tmp_path, snapshot(1))
    (path / MANIFEST).unlink()
    (path / "rubbish").write_text("from the crash")
    assert is_valid(save(tmp_path, snapshot(1)))
    assert not (path / "rubbish").exists()


def test_what_can_not_be_written_leaves_the_older_one(tmp_path: Path) -> None:
    old = save(tmp_path, snapshot(1))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(UserError, match=r"step-000000002.*File too large.*--resume"):
            save(tmp_path, snapshot(2, size=100_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [p.name for p in tmp_path.iterdir()] == [old.name]
    assert latest_valid(tmp_path) == old


def test_a_file_in_the_folders_place(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("")
    with pytest.raises(UserError, match="can't be written"):
        save(tmp_path / "checkpoints", snapshot(1))


def test_pruning(tmp_path: Path) -> None:
    paths = [save(tmp_path, snapshot(n)) for n in range(1, 7)]
    for dead in (paths[0], paths[4]):
        (dead / MANIFEST).unlink()
    prune(tmp_path, keep=2)
    assert sorted(tmp_path.iterdir()) == [paths[3], paths[4], paths[5]]
    prune(tmp_path, keep=5)
    assert latest_valid(tmp_path) == paths[5]
