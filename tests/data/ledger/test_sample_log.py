from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from swav_platform.data.ledger.outcomes import Outcome
from swav_platform.data.ledger.sample_log import SampleLog, check
from swav_platform.errors import UserError

R, S = 4, 3  # positions of a row, rows of a step


@dataclass(frozen=True)
class Row:
    row: int
    position: np.ndarray
    outcome: np.ndarray
    key: list[str]
    shard: list[str]
    stand_in_for: list[str | None]


def row(number: int) -> Row:
    outcome = np.array([Outcome.OK, Outcome.OK, Outcome.TOO_SMALL, Outcome.FILLER], np.uint8)
    keys = [f"k{number}-{slot}" for slot in range(R)]
    return Row(number, np.arange(number * R, (number + 1) * R), outcome, keys, ["a.tar"] * R, [None, None, "own", None])


def hashes(number: int) -> np.ndarray:
    return np.arange(R, dtype=np.uint64) + np.uint64(2**64 - 1000 + number)


def write(folder: Path, first: int, last: int, ranks: int = 2, skip: tuple[int, ...] = ()) -> None:
    """Writes steps first .. last-1 as the ranks of a run do."""
    for rank in range(ranks):
        log = SampleLog(folder, rank)
        for number in range(first * S, last * S):
            if (number - first * S) % ranks == rank and number not in skip:
                log.append(number // S, row(number), hashes(number))
        log.flush()


def result(folder: Path) -> tuple[bool, int, int, int, int]:
    found = check(folder)
    return found.ok, found.positions, found.duplicates, found.missing, found.steps


def test_columns_and_types(tmp_path: Path) -> None:
    write(tmp_path, 0, 2)
    SampleLog(tmp_path, 0).commit(2)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "_committed.json",
        "rank-00000-steps-000000000-000000001.parquet",
        "rank-00001-steps-000000000-000000001.parquet",
    ]
    table = pq.read_table(tmp_path)
    assert table.schema.names == [
        "step",
        "row",
        "position",
        "rank",
        "sample_key",
        "shard",
        "outcome",
        "stand_in_for",
        "view_hash",
    ]
    text = pa.string()
    assert table.schema.types == [pa.int64()] * 3 + [pa.int32(), text, text, text, text, pa.uint64()]
    line = table.slice(2, 1).to_pylist()[0]
    assert line["sample_key"] == "k0-2"
    assert (line["outcome"], line["stand_in_for"]) == ("too_small", "own")
    assert line["view_hash"] == 2**64 - 1000 + 2


def test_exactly_once(tmp_path: Path) -> None:
    write(tmp_path, 0, 3)
    assert result(tmp_path) == (True, 36, 0, 0, 3)
    SampleLog(tmp_path, 0).commit(2)
    assert result(tmp_path) == (True, 24, 0, 0, 2)


def test_steps_repeated_by_other_ranks(tmp_path: Path) -> None:
    write(tmp_path, 0, 5, ranks=3)
    write(tmp_path, 2, 7, ranks=2)
    SampleLog(tmp_path, 0).commit(7)
    assert result(tmp_path) == (True, 84, 0, 0, 7)


def test_a_position_with_different_content(tmp_path: Path) -> None:
    write(tmp_path, 0, 3)
    log = SampleLog(tmp_path, 7)
    changed = hashes(4)
    changed[1] += np.uint64(1)
    log.append(1, row(4), changed)
    other_key = row(5)
    log.append(1, replace(other_key, key=["x", *other_key.key[1:]]), hashes(5))
    own = row(6)
    log.append(2, replace(own, stand_in_for=[None] * R), hashes(6))
    log.flush()
    assert result(tmp_path) == (False, 36, 3, 0, 3)


def test_a_row_in_two_steps(tmp_path: Path) -> None:
    write(tmp_path, 0, 3)
    log = SampleLog(tmp_path, 7)
    log.append(2, row(4), hashes(4))
    log.flush()
    ok, _, duplicates, _, _ = result(tmp_path)
    assert (ok, duplicates) == (False, R)


@pytest.mark.parametrize("lost", [(0,), (4,), (8,), (3, 4, 5), (6, 7, 8)])
def test_lost_rows(tmp_path: Path, lost: tuple[int, ...]) -> None:
    write(tmp_path, 0, 3, skip=lost)
    SampleLog(tmp_path, 0).commit(3)
    assert result(tmp_path) == (False, 36 - R * len(lost), 0, R * len(lost), 3)


def test_a_lost_rank(tmp_path: Path) -> None:
    write(tmp_path, 0, 3, ranks=3)
    for path in tmp_path.glob("rank-00002*"):
        path.unlink()
    assert not check(tmp_path).ok
    SampleLog(tmp_path, 0).commit(3, batch=R * S)
    assert result(tmp_path) == (False, 24, 0, 12, 3)


def test_an_empty_log(tmp_path: Path) -> None:
    log = SampleLog(tmp_path / "log", 1)
    assert log.flush() is None
    log.commit(5)
    assert not (tmp_path / "log").exists()
    with pytest.raises(UserError, match="no sample log"):
        check(tmp_path / "log")


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    log = SampleLog(tmp_path / "file", 0)
    log.append(0, row(0), hashes(0))
    with pytest.raises(UserError, match="could not be written"):
        log.flush()
