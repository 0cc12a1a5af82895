"""Converts a row to an Arrow table of one line and back, without copying its buffer."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pyarrow as pa

from swav_platform.data.ledger.outcomes import Event, Outcome
from swav_platform.rows.layout import Costs, Row, RowLayout

_EVENT = pa.struct(
    [
        ("position", pa.int64()),
        ("attempt", pa.int32()),
        ("sample", pa.int64()),
        ("key", pa.string()),
        ("shard", pa.string()),
        ("outcome", pa.uint8()),
        ("detail", pa.string()),
        ("thumbnail", pa.binary()),
    ]
)

SCHEMA = pa.schema(
    [
        ("row", pa.int64()),
        ("groups", pa.list_(pa.int32())),  # size and count of each group, one after the other
        ("packed", pa.large_binary()),
        ("position", pa.list_(pa.int64())),
        ("sample", pa.list_(pa.int64())),
        ("outcome", pa.list_(pa.uint8())),
        ("weight", pa.list_(pa.float32())),
        ("key", pa.list_(pa.string())),
        ("shard", pa.list_(pa.string())),
        ("stand_in_for", pa.list_(pa.string())),
        ("events", pa.list_(_EVENT)),
        ("costs", pa.list_(pa.float64())),  # the fields of Costs
        ("content", pa.list_(pa.uint64())),
        ("look", pa.list_(pa.uint8())),
    ]
)


def to_table(row: Row) -> pa.Table:
    """The row as a table of one line with SCHEMA. Its `packed` shares the row's buffer."""
    events = [dataclasses.asdict(event) | {"outcome": int(event.outcome)} for event in row.events]
    groups = [number for group in row.layout.groups for number in group]
    values: dict[str, Any] = {"row": row.row, "groups": groups, "events": events, "costs": dataclasses.astuple(row.costs)}
    for name in ("position", "sample", "outcome", "weight", "key", "shard", "stand_in_for", "content", "look"):
        values[name] = getattr(row, name)
    columns = [
        _one_value(row.packed) if field.name == "packed" else pa.array([values[field.name]], field.type) for field in SCHEMA
    ]
    return pa.Table.from_arrays(columns, schema=SCHEMA)


def _one_value(packed: np.ndarray) -> pa.LargeBinaryArray:
    ends = np.array([0, packed.nbytes], np.int64)
    return pa.LargeBinaryArray.from_buffers(pa.large_binary(), 1, [None, pa.py_buffer(ends), pa.py_buffer(packed)])


def from_table(table: pa.Table) -> Row:
    """The row of a table that to_table made. Its arrays are read-only views of the table's memory.

    Raises ValueError unless the table has one line.
    """
    if table.num_rows != 1:
        raise ValueError(f"expected a table of one line, got {table.num_rows}")
    line = {name: table.column(name).combine_chunks() for name in SCHEMA.names if name != "packed"}
    position = _numbers(line["position"])
    groups = line["groups"][0].as_py()
    layout = RowLayout(len(position), tuple(zip(groups[::2], groups[1::2], strict=True)))
    packed = _bytes_of(table)
    return Row(
        row=line["row"][0].as_py(),
        views=layout.views(packed),
        params=layout.params(packed),
        position=position,
        sample=_numbers(line["sample"]),
        outcome=_numbers(line["outcome"]),
        weight=_numbers(line["weight"]),
        key=line["key"][0].as_py(),
        shard=line["shard"][0].as_py(),
        stand_in_for=line["stand_in_for"][0].as_py(),
        events=[Event(**(event | {"outcome": Outcome(event["outcome"])})) for event in line["events"][0].as_py()],
        packed=packed,
        layout=layout,
        costs=Costs(*line["costs"][0].as_py()),
        content=_numbers(line["content"]),
        look=_numbers(line["look"]),
    )


def _bytes_of(table: pa.Table) -> np.ndarray:
    """The buffer behind `packed`, uint8 [nbytes]. Taken from its chunk, because combining chunks or taking a scalar copies."""
    chunk = next(chunk for chunk in table.column("packed").chunks if len(chunk))
    _, ends, data = chunk.buffers()
    start, stop = np.frombuffer(ends, np.int64, 2, chunk.offset * 8).tolist()
    packed = np.frombuffer(data, np.uint8, stop - start, start)
    packed.flags.writeable = False  # other processes may map the same memory
    return packed


def _numbers(column: pa.ListArray) -> np.ndarray:
    numbers: np.ndarray = column[0].values.to_numpy(zero_copy_only=True)
    return numbers
