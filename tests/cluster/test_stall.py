"""Who keeps a group of workers waiting: a plain function of what ranks told."""

from __future__ import annotations

from swav_platform.cluster.stall import Beat, Seen, stall


def seen(rank: int, *, step: int = 7, doing: str = "step", collectives: int = 30, silent: float = 0.5, same: float = 0.5) -> Seen:
    return Seen(Beat(rank, 100 + rank, "n", "host", step, doing, collectives), silent, same)


def test_progress_is_no_stall() -> None:
    assert stall([seen(0), seen(1, same=500.0)], 2, 600) is None, "one rank goes on"
    assert stall([seen(0, same=29.0), seen(1, same=29.0)], 2, 600) is None
    assert stall([], 2, 600) is None, "nobody has told anything yet"


def test_a_stopped_process_is_named_and_replaced() -> None:
    found = stall([seen(0, same=21.0), seen(1, silent=21.0, same=21.0)], 2, 600)
    assert found is not None
    assert "worker 1 (process 101 on host): no sign of life for 21 s" in found.waiting_for
    assert (found.named, found.restart, [b.rank for b in found.late]) == (True, False, [1])
    found = stall([seen(0), seen(1, silent=41.0, same=41.0)], 2, 600)
    assert found is not None
    assert found.restart


def test_the_rank_that_did_not_arrive_is_named() -> None:
    def group(same: float) -> list[Seen]:
        return [seen(0, collectives=31, same=same), seen(1, same=same), seen(2, collectives=31, same=same)]

    found = stall(group(31.0), 3, 60)
    assert found is not None
    assert "worker 1 (process 101 on host) in step 7" in found.waiting_for
    assert (found.named, found.restart, [b.rank for b in found.late]) == (True, False, [1])
    found = stall(group(61.0), 3, 60)
    assert found is not None
    assert found.restart


def test_a_wait_for_rows_or_a_checkpoint_never_restarts_the_group() -> None:
    rows = stall([seen(0, doing="rows", same=4000.0), seen(1, collectives=31, same=4000.0)], 2, 60)
    assert rows is not None
    assert rows.waiting_for.startswith("rows of step 7: data tasks have made none for worker 0")
    assert not rows.restart
    written = stall([seen(0, doing="checkpoint", same=4000.0), seen(1, doing="checkpoint", same=4000.0)], 2, 60)
    assert written is not None
    assert (written.waiting_for, written.restart) == ("the checkpoint after step 7 to be written", False)


def test_many_late_ranks_are_counted() -> None:
    found = stall([seen(rank, silent=25.0) for rank in range(9)], 9, 600)
    assert found is not None
    assert "workers 0, 1, 2, 3 and 5 more" in found.waiting_for
