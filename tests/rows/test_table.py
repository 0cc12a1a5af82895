"""A row as an Arrow table and back: the same row, in the same memory."""

from __future__ import annotations

import dataclasses

import numpy as np
import pyarrow as pa
import pytest

from swav_platform.data.ledger.outcomes import Event, Outcome
from swav_platform.rows.layout import Costs, Row, RowLayout
from swav_platform.rows.make import view_hashes
from swav_platform.rows.table import from_table, to_table

LAYOUT = RowLayout(4, ((8, 2), (5, 3)))


def row(number: int = 7, events: bool = True) -> Row:
    packed = np.random.default_rng(number).integers(0, 100, LAYOUT.nbytes, dtype=np.uint8)
    return Row(
        row=number,
        views=LAYOUT.views(packed),
        params=LAYOUT.params(packed),
        position=np.arange(4) + 2**40,
        sample=np.arange(4) * 3,
        outcome=np.array([0, 1, 5, 0], np.uint8),
        weight=np.array([1, 1, 1, 0], np.float32),
        key=["a", "ü/b", "", "d%2E"],
        shard=["s.tar"] * 4,
        stand_in_for=[None, None, "own", None],
        events=[
            Event(2**40 + 2, 0, 6, "own", "s.tar", Outcome.TRUNCATED, "cut", b"\xff\xd8"),
            Event(1, 3, 2, "k", "t", Outcome.CORRUPT, "", None),
        ]
        if events
        else [],
        packed=packed,
        layout=LAYOUT,
        costs=Costs(1.5, 2.5, 3.5, 4.0),
    )


def same(got: Row, wanted: Row) -> None:
    for field in dataclasses.fields(Row):
        a, b = getattr(got, field.name), getattr(wanted, field.name)
        if isinstance(b, np.ndarray):
            assert a.dtype == b.dtype
            np.testing.assert_array_equal(a, b)
        elif field.name in ("views", "params"):
            for x, y in zip(a, b, strict=True):
                assert x.dtype == y.dtype
                np.testing.assert_array_equal(x, y)
        else:
            assert a == b, field.name


@pytest.mark.parametrize("events", [True, False])
def test_there_and_back_without_a_copy(events: bool) -> None:
    start = row(events=events)
    table = to_table(start)
    assert table.num_rows == 1
    assert table.column("packed").chunk(0).buffers()[2].address == start.packed.ctypes.data
    got = from_table(table)
    same(got, start)
    assert got.packed.ctypes.data == start.packed.ctypes.data
    assert got.views[1].ctypes.data == start.views[1].ctypes.data
    for part in [*got.views, *got.params, got.packed, got.position, got.weight]:
        assert not part.flags.writeable
    np.testing.assert_array_equal(view_hashes(got), view_hashes(start))


def test_out_of_a_larger_table_and_through_ipc() -> None:
    rows = [row(number) for number in range(3)]
    together = pa.concat_tables([to_table(r) for r in rows])
    for table in (together, together.combine_chunks()):
        for number, wanted in enumerate(rows):
            got = from_table(table.slice(number, 1))
            same(got, wanted)
            assert all(part.flags.aligned for part in got.params)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, together.schema) as writer:
        writer.write_table(together.slice(1, 1))
    memory = sink.getvalue()
    got = from_table(pa.ipc.open_stream(memory).read_all())
    same(got, rows[1])
    assert memory.address <= got.packed.ctypes.data < memory.address + memory.size


def test_a_row_is_one_line() -> None:
    table = pa.concat_tables([to_table(row()), to_table(row())])
    with pytest.raises(ValueError, match="one line"):
        from_table(table)


def test_the_table_keeps_the_buffer_alive() -> None:
    start = row()
    wanted = start.packed.copy()
    got = from_table(to_table(start))
    del start
    np.testing.assert_array_equal(got.packed, wanted)
