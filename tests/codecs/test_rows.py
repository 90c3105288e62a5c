"""What is the same for every decoder: numbers into arrays, records back out of chunks, the check for finite ones."""

from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streambatch.codecs.formats import framing
from streambatch.codecs.rows import array_of, ids_by_position, living, records_of, validate
from streambatch.core.outcomes import Rows
from streambatch.core.schema import RecordSchema
from streambatch.core.types import FloatArray, IntArray
from tests.codecs.framed import chunks_in

STRIP = framing("lines").strip
SCHEMA = RecordSchema(id="id", features="v", shape=(2,))
NAN_SCHEMA = RecordSchema(id="id", features="v", shape=(2,), missing="nan")
CHUNKS = chunks_in("lines", [b"a\nb\n", b"\nc\nd\ne\n"])


def rows_of(x: FloatArray, index: IntArray | None = None) -> Rows:
    return Rows(list(range(len(x))), x, [[f"c{i}" for i in range(len(x))]], index, [])


def test_finite_rows_pass_untouched() -> None:
    rows = rows_of(np.full((5, 2), 1e30, np.float32))
    assert validate(rows, CHUNKS, SCHEMA, STRIP) is rows
    empty = rows_of(np.empty((0, 2)), np.empty(0, np.int64))
    assert validate(empty, CHUNKS, SCHEMA, STRIP) is empty


def test_rows_that_are_not_finite_become_rejects() -> None:
    x = np.ones((5, 2))
    x[1, 1], x[3, 0], x[3, 1] = np.inf, np.nan, -np.inf
    valid = validate(rows_of(x), CHUNKS, SCHEMA, STRIP)
    assert valid.ids == [0, 2, 4]
    assert valid.carry == [["c0", "c2", "c4"]]
    assert valid.x.shape == (3, 2)
    assert valid.index is not None
    assert valid.index.tolist() == [0, 2, 4]
    assert [(r.index, r.id, r.record, r.position, r.reason, r.error) for r in valid.rejects] == [
        (1, 1, b"b", 4, "not_finite", "[record] v[1]: expected a finite float32 number, found inf"),
        (3, 3, b"d", 9, "not_finite", "[record] v[0]: expected a finite float32 number, found nan"),
    ]


def test_places_are_those_of_the_rows() -> None:
    x = np.array([[1, 2], [np.inf, 3], [4, 5]])
    valid = validate(rows_of(x, np.array([0, 2, 4])), CHUNKS, SCHEMA, STRIP)
    assert valid.index is not None
    assert valid.index.tolist() == [0, 4]
    assert [(r.index, r.record, r.position) for r in valid.rejects] == [(2, b"c", 7)]


def test_nan_passes_where_it_stands_for_missing() -> None:
    x = np.array([[1, np.nan], [np.nan, np.inf], [np.nan, np.nan]])
    valid = validate(rows_of(x), CHUNKS, NAN_SCHEMA, STRIP)
    assert valid.ids == [0, 2]
    assert [reject.error for reject in valid.rejects] == ["[record] v[1]: expected a finite float32 number, found inf"]
    only_nan = rows_of(x[[0, 2]])
    assert validate(only_nan, CHUNKS, NAN_SCHEMA, STRIP) is only_nan


def test_parts_of_chunks_know_their_records() -> None:
    (chunk,) = chunks_in("lines", [b"a\nb\r\n\ncc\n"], position=100)
    head = chunk.split_off(1)
    assert (records_of(head, STRIP), records_of(chunk, STRIP)) == ([b"a"], [b"b", b"cc"])
    assert ids_by_position([chunk, head], None) == ["a:105", "a:109", "a:102"]
    assert ids_by_position([chunk, head], np.array([0, 2])) == ["a:105", "a:102"]


def test_living_chunks_keep_their_places() -> None:
    chunks = chunks_in("lines", [b"a\nb\n" + b"x" * 9 + b"\nc\n"], max_record_bytes=5)
    live, places, rejects = living(chunks, SCHEMA)
    assert places is not None
    assert (live, places.tolist()) == ([chunks[0], chunks[2]], [0, 1, 3])
    assert [(reject.index, reject.stage, reject.record) for reject in rejects] == [(2, "frame", b"x" * 9)]
    assert living(live, SCHEMA) == (live, None, [])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@given(st.lists(st.none() | st.floats()))
def test_numbers_become_an_array(dtype: Literal["float32", "float64"], values: list[float | None]) -> None:
    x = array_of(values, np.dtype(dtype))
    with np.errstate(over="ignore"):
        expected = np.array(values, np.float64).astype(dtype)
    assert x.dtype == dtype
    assert x.flags.writeable
    np.testing.assert_array_equal(x, expected)
