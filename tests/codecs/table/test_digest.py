"""The digest of table rows: the same for the same rows however they are cut, another for any other rows."""

from datetime import datetime
from itertools import pairwise
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streambatch.codecs.table.digest import TableDigest

ROWS = 60
_COLUMNS = {
    "float": pa.array([i / 7 if i % 7 else None for i in range(ROWS)]),
    "text": pa.array([f"é{i}" * (i % 4) if i % 5 else None for i in range(ROWS)]),
    "view": pa.array([str(i) for i in range(ROWS)], pa.string_view()),
    "bytes": pa.array([bytes([i]) * (i % 3) for i in range(ROWS)]),
    "vector": pa.array([[float(i), 2.0, 3.0] for i in range(ROWS)], pa.list_(pa.float32(), 3)),
    "holes": pa.array([[float(i), None, 3.0] if i % 3 else None for i in range(ROWS)], pa.list_(pa.float32(), 3)),
    "lists": pa.array([[[i] * (i % 2)] * (i % 3) if i % 4 else None for i in range(ROWS)]),
    "flag": pa.array([bool(i % 2) if i % 3 else None for i in range(ROWS)]),
    "kind": pa.array(["x", "y"] * (ROWS // 2)).dictionary_encode(),
    "pair": pa.array([{"x": i, "y": str(i)} if i % 6 else None for i in range(ROWS)]),
    "map": pa.array([[("k", i)] * (i % 2) for i in range(ROWS)], pa.map_(pa.string(), pa.int64())),
    "nothing": pa.nulls(ROWS),
    "moment": pa.array([datetime(2020, 1, 1 + i % 20) for i in range(ROWS)]),
    "price": pa.array([i if i % 8 else None for i in range(ROWS)], pa.decimal128(10, 2)),
}
BATCH: Any = pa.table(_COLUMNS).combine_chunks().to_batches()[0]


def digest(*batches: Any) -> str:
    found = TableDigest()
    for batch in batches:
        found.update(batch)
    return found.hexdigest()


@given(cuts=st.lists(st.integers(0, ROWS), max_size=8))
def test_how_rows_are_cut_makes_no_difference(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), ROWS]
    pieces = [BATCH.slice(start, stop - start) for start, stop in pairwise(edges)]
    assert digest(*pieces) == digest(BATCH)


@pytest.mark.parametrize("name", [name for name in _COLUMNS if name not in ("nothing",)])
def test_one_other_value_makes_another_digest(name: str) -> None:
    values = BATCH.column(name).to_pylist()
    index = next(at for at in range(10, ROWS) if values[at] != values[11] and values[at] is not None)
    values[index] = values[11]
    column = pa.array(values, BATCH.schema.field(name).type)
    changed = BATCH.set_column(BATCH.schema.get_field_index(name), BATCH.schema.field(name), column)
    assert digest(changed) != digest(BATCH)


def test_missing_and_empty_are_not_the_same() -> None:
    kinds = [pa.array([None], pa.string()), pa.array([""]), pa.array([None], pa.list_(pa.int64())), pa.array([[]])]
    found = {digest(pa.RecordBatch.from_arrays([column], ["a"])) for column in kinds}
    assert len(found) == len(kinds)


def test_where_a_list_ends_makes_a_difference() -> None:
    one, other = pa.array([[1], [2, 3]]), pa.array([[1, 2], [3]])
    assert digest(pa.RecordBatch.from_arrays([one], ["a"])) != digest(pa.RecordBatch.from_arrays([other], ["a"]))
