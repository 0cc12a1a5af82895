"""The size of a group of workers: plain functions of nodes and settings."""

from __future__ import annotations

import pytest

from swav_platform.cluster.room import Group, Node, choose, lacking
from swav_platform.config import Config, load


def config(workers: str, tasks: str = "2", *more: str) -> Config:
    return load(None, ["train.batch=256", "data.row_size=32", f"train.workers={workers}", f"data.tasks={tasks}", *more])


ONE, TWO, BIG = [Node(2)], [Node(2), Node(2)], [Node(96, 8)] * 8


@pytest.mark.parametrize(
    ("nodes", "workers", "tasks", "expected"),
    [
        (TWO, "[1, 2]", "2", Group(2, 2)),
        (ONE, "[1, 2]", "2", Group(1, 1)),  # a node was lost: two workers would leave no CPU for data
        (ONE, "2", "2", None),
        (TWO, "2", "8", Group(2, 2)),
        (TWO, "[1, 4]", "3", Group(1, 3)),
        (TWO, "[1, 4]", "auto", Group(3, 1)),
        (TWO, "auto", "auto", Group(2, 2)),
        (ONE, "auto", "auto", Group(1, 1)),
        ([Node(1)], "[1, 2]", "auto", None),
        ([Node(64)], "[1, 8]", "auto", Group(8, 56)),
        ([Node(8)], "[1, 8]", "1", Group(4, 4)),  # seven workers would be as slow as four: 8 rows, two on some
        ([], "[1, 2]", "2", None),
    ],
)
def test_data_tasks_keep_cpus(nodes: list[Node], workers: str, tasks: str, expected: Group | None) -> None:
    found = choose(config(workers, tasks), nodes, "cpu")
    assert (found and (found.workers, found.device)) == (expected and (expected.workers, expected.device))
    if found and expected:
        free = sum(node.cpus for node in nodes) - found.workers
        assert 1 <= found.tasks <= free


@pytest.mark.parametrize(
    ("nodes", "workers", "expected"),
    [
        (BIG, "auto", 64),
        (BIG[:3], "[8, 64]", 22),  # 64 rows: three on some workers, as with 24
        ([Node(4, 8)], "auto", 3),  # each worker needs a CPU, data tasks too
        ([Node(2, 8), Node(64)], "auto", 2),  # data tasks on the other node
        ([Node(64)], "[1, 8]", None),
    ],
)
def test_workers_on_gpus(nodes: list[Node], workers: str, expected: int | None) -> None:
    found = choose(config(workers, "auto", "train.batch=4096", "data.row_size=64"), nodes, "cuda")
    assert (found and found.workers) == expected
    if found:
        assert found.tasks == sum(node.cpus for node in nodes) - found.workers


def test_split_weights_get_a_divisor_of_the_rows() -> None:
    found = choose(config("[1, 8]", "1", "train.shard=fsdp2"), [Node(8)], "cpu")
    assert found is not None
    assert found.workers == 4


def test_data_tasks_stay_on_labelled_nodes() -> None:
    nodes = [Node(8, 4), Node(2, labels={"pool": "data"})]
    found = choose(config("[1, 4]", "auto", "data.node_labels={pool: data}"), nodes, "cuda")
    assert found == Group(4, 2, "cuda")


def test_what_is_lacking_is_told() -> None:
    assert lacking(config("2"), ONE, "cpu") == "CPUs: 3 for 2 workers and data tasks, 2 on 1 node"
    assert lacking(config("[2, 4]"), TWO, "cuda") == "GPUs: 2 for workers, 0 on 2 nodes"
