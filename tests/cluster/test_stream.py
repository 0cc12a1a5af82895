"""Rows through Ray Data: their order, the split over ranks, changes of segment, equality with the function that makes them."""

from __future__ import annotations

import dataclasses
import itertools
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from swav_platform.cluster import session
from swav_platform.cluster.segments import StreamSplit, grouped_chunks, task_resources
from swav_platform.cluster.stream import open_streams, rank_rows
from swav_platform.cluster.train import user_message
from swav_platform.config import load
from swav_platform.data.index.build import build_index
from swav_platform.data.index.sources import expand
from swav_platform.errors import UsageError
from swav_platform.images.decoding.confined import NoDecoderError
from swav_platform.rows.job import RowJob
from swav_platform.rows.layout import Row
from swav_platform.rows.make import view_hashes
from swav_platform.rows.produce import rows as rows_of


@pytest.fixture(scope="module")
def job(shards: Path, tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> RowJob:
    path = tmp_path_factory.mktemp("index")
    build_index(expand([str(shards)]), path)
    return RowJob(load(None, tiny), str(path))


def test_each_row_is_taken_by_its_rank_from_its_stream() -> None:
    for streams, ranks, first, segment in itertools.product((1, 2, 3), (1, 2, 3, 4, 5), (0, 7), (1, 16)):
        taken: dict[int, int] = {}
        for split in (StreamSplit(s, streams, first, first + 101, ranks, segment) for s in range(streams)):
            assert all(a[1] <= b[0] < a[1] + streams for a, b in itertools.pairwise(split.segments))
            for a, b in split.segments:
                for i, row in enumerate(range(a, b, streams)):
                    assert row % streams == split.stream
                    taken[row] = split.consumers[i % len(split.consumers)]
        assert taken == {row: (row - first) % ranks for row in range(first, first + 101)}


def test_tasks_of_two_overlapping_segments_of_all_streams_fit() -> None:
    for tasks, streams in itertools.product((1, 2, 3, 7, 16), (1, 2, 3, 5)):
        each, cpus = task_resources(tasks, streams)
        assert 2 * streams * each * round(1e4 * cpus) <= 1e4 * tasks, "Ray counts in parts of 10,000"
        assert (each - 1) * streams >= tasks, "one is spare"


def test_short_chunks_share_a_task(job: RowJob) -> None:
    job = with_data(job, window=64)
    whole = 16 * 64 // job.config.data.row_size  # an epoch is a sixth of it
    assert max(sum(map(len, task)) for task in grouped_chunks(job, 0, 0, 2000)) > whole - 20, "groups are filled to the limit"
    for first, last in [(0, 2000), (0, 400), (3, 46), (5, 6)]:
        chunks, tasks = job.plan().chunks(0, first, last), grouped_chunks(job, 0, first, last)
        assert [chunk for task in tasks for chunk in task] == chunks
        assert all(sum(map(len, task)) <= whole for task in tasks)
        assert len(tasks) >= min(len(chunks), 4 * job.config.data.tasks)


def test_rows_are_a_function_of_their_numbers(job: RowJob) -> None:
    together = {row.row: view_hashes(row) for row in rows_of(job, 0, 8)}
    alone = next(rows_of(job, 5, 6))
    assert np.array_equal(view_hashes(alone), together[5])
    assert len({int(h) for hashes in together.values() for h in hashes}) == 8 * 8, "no two positions have the same views"


@pytest.mark.stack
@pytest.mark.parametrize(("streams", "ranks"), [(1, 3), (2, 2), (3, 2)])
def test_each_rank_gets_its_rows_in_order(job: RowJob, local_ray: None, streams: int, ranks: int) -> None:
    first, last = 3, 46  # neither a multiple of the ranks nor of the segment
    job = with_data(job, streams=streams)
    taken = consume(job, first, last, ranks)
    for rank, rows in enumerate(taken):
        assert [row.row for row in rows] == [k for k in range(first, last) if (k - first) % ranks == rank]
    sent = taken[0][1]
    plain = next(rows_of(job, sent.row, sent.row + 1))
    assert np.array_equal(view_hashes(sent), view_hashes(plain))
    assert not sent.views[0].flags.writeable, "rows are views of the object store, not copies"


@pytest.mark.stack
def test_chunks_of_one_task_give_their_rows_in_order(job: RowJob, local_ray: None) -> None:
    job = with_data(job, window=64, segment=160, tasks=1)
    assert len(grouped_chunks(job, 0, 0, 160)) < len(job.plan().chunks(0, 0, 160))
    [rows] = consume(job, 0, 160, 1)
    assert [row.row for row in rows] == list(range(160))
    assert np.array_equal(view_hashes(rows[30]), view_hashes(next(rows_of(job, 30, 31))))


def with_data(job: RowJob, **settings: int) -> RowJob:
    data = job.config.data.model_copy(update=settings)
    return dataclasses.replace(job, config=job.config.model_copy(update={"data": data}))


def consume(job: RowJob, first: int, last: int, ranks: int) -> list[list[Row]]:
    streams = open_streams(job, first, last, ranks)
    taken: list[list[Row]] = [[] for _ in range(ranks)]
    threads = [threading.Thread(target=lambda rank=rank: taken[rank].extend(rank_rows(streams, rank))) for rank in range(ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return taken


class Bytes:
    """An image for which no decoder process can start."""

    def __len__(self) -> int:
        raise NoDecoderError("no process can be started here")


@pytest.mark.stack
def test_a_user_error_of_a_data_task_reaches_the_user(job: RowJob, local_ray: None) -> None:
    import ray.cloudpickle

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    try:
        broken = dataclasses.replace(job, killers=dict.fromkeys(range(1000), Bytes()))
        with pytest.raises(Exception, match="no process") as caught:
            list(rank_rows(open_streams(broken, 0, 4, 1), 0))
    finally:
        ray.cloudpickle.unregister_pickle_by_value(sys.modules[__name__])
    assert user_message(caught.value) == "no process can be started here"
    assert user_message(ValueError("x")) is None


@pytest.mark.stack
def test_data_tasks_run_on_nodes_with_the_labels(job: RowJob, local_ray: None) -> None:
    import ray

    [node] = ray.nodes()
    key, value = "ray.io/node-id", node["NodeID"]

    def labelled(labels: dict[str, str]) -> RowJob:
        data = job.config.data.model_copy(update={"node_labels": labels})
        return dataclasses.replace(job, config=job.config.model_copy(update={"data": data}))

    assert [row.row for row in consume(labelled({key: value}), 0, 4, 1)[0]] == [0, 1, 2, 3]
    with pytest.raises(UsageError, match="ray start --labels=zone=north"), session.connected(labelled({"zone": "north"}).config):
        pass
