"""When another group should take the place of a running one: a plain function of nodes and settings."""

from __future__ import annotations

import pytest

from swav_platform.cluster.monitor import better
from swav_platform.cluster.room import Group, Node
from swav_platform.config import load

ONE, TWO = [Node(2)], [Node(2), Node(2)]


@pytest.mark.parametrize(
    ("workers", "group", "nodes", "free", "why"),
    [
        ("[1, 2]", Group(1, 1), ONE, [Node(0)], None),
        ("[1, 2]", Group(1, 1), TWO, [Node(0), Node(2)], "room for 2 workers"),
        ("[1, 2]", Group(1, 1), TWO, [Node(0), Node(0)], None),  # another job holds the new node
        ("[1, 2]", Group(2, 2), TWO, [Node(0), Node(0)], None),
        ("[1, 2]", Group(2, 2), ONE, [Node(0)], "2 CPUs are left for 2 workers and 2 data tasks"),
        ("2", Group(2, 2), ONE, [Node(0)], None),  # nothing fits: wait for a node
        ("2", Group(2, 8), [Node(6)], [Node(0)], "6 CPUs are left"),
        ("1", Group(1, 2), [Node(64)], [Node(61)], None),
    ],
)
def test_reasons_for_another_group(workers: str, group: Group, nodes: list[Node], free: list[Node], why: str | None) -> None:
    config = load(None, ["train.batch=256", "data.row_size=32", f"train.workers={workers}", "data.tasks=2"])
    found = better(config, group, nodes, free)
    assert (why in found) if found and why else found is why
