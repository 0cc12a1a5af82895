from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from swav_platform.data.ledger.ledger import Ledger
from swav_platform.data.ledger.outcomes import Event, Outcome
from swav_platform.errors import UserError


def event(position: int, attempt: int, sample: int, outcome: Outcome = Outcome.CORRUPT, shard: str = "a.tar") -> Event:
    return Event(position, attempt, sample, f"key{sample}", shard, outcome, "why", b"jpeg%d" % sample)


EVENTS = [
    event(9, 0, 1),
    event(3, 0, 2, Outcome.TOO_SMALL, "b.tar"),
    event(3, 1, 1),
    event(3, 2, 7),
    event(20, 0, 1),
]


def test_counts() -> None:
    ledger = Ledger(EVENTS)
    assert ledger.outcomes() == {"corrupt": 2, "too_small": 1}
    assert ledger.quarantined == 3
    assert ledger.samples() == 3
    assert ledger.shards() == [("a.tar", 2), ("b.tar", 1)]


def test_repeated_steps_count_once() -> None:
    ledger = Ledger(EVENTS)
    ledger.add(EVENTS[:3])
    assert len(ledger) == 5
    assert ledger.outcomes() == {"corrupt": 2, "too_small": 1}


def test_round_trip_through_a_checkpoint_and_a_file(tmp_path: Path) -> None:
    ledger = Ledger(EVENTS)
    ledger.write(tmp_path / "run" / "ledger.parquet")
    for other in (Ledger.from_bytes(ledger.to_bytes()), Ledger.read(tmp_path / "run" / "ledger.parquet")):
        assert other.events() == ledger.events()
        assert other.to_bytes() == ledger.to_bytes()
    assert Ledger.from_bytes(Ledger().to_bytes()).events() == []
    table = pq.read_table(tmp_path / "run" / "ledger.parquet")
    assert table.column_names == ["position", "attempt", "sample", "sample_key", "shard", "outcome", "detail", "thumbnail"]
    assert table["position"].to_pylist() == [3, 3, 3, 9, 20]
    assert table["outcome"].to_pylist() == ["too_small", "corrupt", "corrupt", "corrupt", "corrupt"]


def test_one_thumbnail_per_sample_up_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [e.thumbnail for e in Ledger(EVENTS).events()] == [b"jpeg2", b"jpeg1", b"jpeg7", None, None]
    monkeypatch.setattr("swav_platform.data.ledger.parts.THUMBNAILS", 10)
    many = Ledger(event(position, 0, position) for position in range(50))
    assert sum(e.thumbnail is not None for e in many.events()) == 10
    assert len(many) == 50
    assert Ledger([replace(event(0, 0, 0), thumbnail=None)]).events()[0].thumbnail is None


def test_errors_name_the_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no ledger .*gone\.parquet"):
        Ledger.read(tmp_path / "gone.parquet")
    (tmp_path / "half.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"half\.parquet can't be read"):
        Ledger.read(tmp_path / "half.parquet")
