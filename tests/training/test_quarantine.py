"""A run stops when too many of its images can't be used, also late, and can't succeed without any."""

from __future__ import annotations

from swav_platform.data.ledger.outcomes import Outcome
from swav_platform.training.counters import Counters
from swav_platform.training.quarantine import WINDOW, Recent, too_many


def step(positions: int, bad: int, grey: int = 0) -> Counters:
    outcomes = [0] * len(Outcome)
    outcomes[Outcome.OK], outcomes[Outcome.READ_ERROR] = positions - bad, bad
    return Counters(tuple(outcomes), trained=positions - grey)


def test_a_late_failure_trips_although_the_whole_share_is_small() -> None:
    recent, positions, bad = Recent(), 0, 0
    for number in range(2000):
        now = step(100, 90 if number >= 1900 else 1)
        recent.add(now)
        positions, bad = positions + 100, bad + now.quarantined
        found = too_many(0.5, positions, bad, 10**6, recent)
        if found:
            break
    assert found is not None
    assert "of the last 4,000 images" in found
    assert 1900 < number < 1900 + WINDOW / 100
    assert bad < 0.05 * positions


def test_the_window_holds_the_last_positions_only() -> None:
    recent = Recent(window=250)
    for number in range(50):
        recent.add(step(100, number, grey=100 if number >= 47 else 0))
    assert (recent.positions, recent.quarantined, recent.trained) == (300, 47 + 48 + 49, 0)


def test_few_positions_prove_nothing() -> None:
    recent = Recent()
    recent.add(step(100, 100))
    assert too_many(0.5, 100, 100, 10**6, recent) is None
    assert too_many(0.5, 100, 100, 100, recent) == "100 of the first 100 images"
