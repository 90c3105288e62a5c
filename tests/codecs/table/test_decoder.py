"""Rows of tables decoded: what is right shares the table's memory, what is wrong dies alone, whatever its type."""

from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET

from streambatch.codecs.columns import is_arrow, values
from streambatch.core.schema import RecordSchema
from tests.codecs.decoding import lines_decoded
from tests.codecs.table.tabling import batch_of, decoded_chunks, decoded_table, faults_of, ids_of, table_chunks

PAIRS = RecordSchema(id="id", features="f", shape=(2,), dtype="float64")
FIELDS = RecordSchema(id="id", features=["a", "b"], dtype="float64")
NESTED = RecordSchema(features="f", shape=(2, 3), dtype="float64")
GRID = [[[1, 2, 3], [4, 5, 6]], [[7, 8, 9], [10, 11, 12]]]


@pytest.mark.parametrize(
    "kind",
    [
        pa.list_(pa.float64()), pa.large_list(pa.float32()), pa.list_(pa.float64(), 2), pa.list_(pa.int8()),
        pa.list_(pa.float16()), pa.list_(pa.decimal128(5, 2)), pa.list_(pa.uint64()),
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_lists_of_any_numbers(kind: Any, dtype: Any) -> None:
    convert = (
        Decimal if pa.types.is_decimal(kind.value_type) else np.float16 if kind.value_type == pa.float16() else int
    )
    lists = pa.array([[convert(value) for value in pair] for pair in ([9, 9], [1, 2], [3, 3])], kind)
    schema = RecordSchema(id="id", features="f", shape=(2,), dtype=dtype)
    rows = decoded_table(schema, batch_of(id=["a", "b", "c"], f=lists)[1:])
    assert rows.x.tolist() == [[1, 2], [3, 3]]
    assert ids_of(rows) == ["b", "c"]
    assert rows.index is None


@pytest.mark.parametrize(
    "column",
    [
        pa.array([1.5, 2.5]), pa.array([1.5, 2.5], pa.float32()), pa.array([Decimal("1.5"), Decimal("2.5")]),
        pa.array([1.5, 2.5]).dictionary_encode(), pa.array([0, 1.5, 2.5])[1:],
    ],
    ids=lambda each: str(each.type),
)  # fmt: skip
def test_scalar_fields_of_any_numbers(column: Any) -> None:
    rows = decoded_table(FIELDS, batch_of(id=[1, 2], a=column, b=pa.array([1, 2])))
    assert rows.x.tolist() == [[1.5, 1], [2.5, 2]]
    assert ids_of(rows) == [1, 2]


def test_one_number_may_be_a_column_or_a_list_of_one() -> None:
    schema = RecordSchema(features="f", shape=(1,))
    for column in (pa.array([1.0, 2.0]), pa.array([[1.0], [2.0]])):
        assert decoded_table(schema, batch_of(f=column)).x.tolist() == [[1], [2]]


@pytest.mark.parametrize(
    "kind",
    [
        pa.list_(pa.list_(pa.float64())), pa.large_list(pa.list_(pa.int32(), 3)),
        pa.list_(pa.list_(pa.float32(), 3), 2), pa.list_(pa.large_list(pa.float64()), 2),
    ],
    ids=str,
)  # fmt: skip
def test_nested_lists(kind: Any) -> None:
    rows = decoded_table(NESTED, batch_of(f=pa.array([GRID[0], *GRID], kind))[1:])
    assert rows.x.tolist() == GRID
    assert ids_of(rows) == ["a:1", "a:2"]


def test_tensors() -> None:
    column = pa.FixedShapeTensorArray.from_numpy_ndarray(np.array(GRID, np.float64))
    assert decoded_table(NESTED, batch_of(f=column)).x.tolist() == GRID
    other = RecordSchema(features="f", shape=(3, 2))
    assert {reason for reason, _ in faults_of(decoded_table(other, batch_of(f=column))).values()} == {"wrong_shape"}


def test_features_share_the_memory_of_the_table_where_types_allow_it() -> None:
    batch = batch_of(id=[1, 2, 3], f=pa.array([[1.0, 2.0]] * 3, pa.list_(pa.float64(), 2)))
    x = decoded_table(PAIRS, batch[1:]).x
    assert np.shares_memory(x, batch["f"].values.to_numpy())
    assert not x.flags.writeable


def test_each_wrong_row_dies_alone() -> None:
    lists = [[1, 2], None, [1], [1, None], [], [1, 2, 3], [3, 4], [1, float("inf")], [1, float("nan")]]
    rows = decoded_table(PAIRS, batch_of(id=range(9), f=pa.array(lists, pa.list_(pa.float64()))))
    assert ids_of(rows) == [0, 6]
    assert rows.x.tolist() == [[1, 2], [3, 4]]
    assert faults_of(rows) == {
        1: ("missing_field", "[record] f: expected 2 numbers, found null"),
        2: ("wrong_shape", "[record] f: expected 2 numbers, found 1"),
        3: ("missing_field", "[record] f: expected a number, found null in a list"),
        4: ("wrong_shape", "[record] f: expected 2 numbers, found 0"),
        5: ("wrong_shape", "[record] f: expected 2 numbers, found 3"),
        7: ("not_finite", "[record] f[1]: expected a finite float64 number, found inf"),
        8: ("not_finite", "[record] f[1]: expected a finite float64 number, found nan"),
    }
    assert [reject.id for reject in rows.rejects] == [1, 2, 3, 4, 5, 7, 8]
    assert [reject.position for reject in rows.rejects] == [2, 3, 4, 5, 6, 8, 9]
    assert rows.rejects[1].record == b'{"id":2,"f":[1.0]}'


def test_wrong_rows_of_nested_lists() -> None:
    lists = [GRID[0], [[1, 2, 3], None], [[1, 2, 3], [1]], [[1, 2, 3]], None, [[1, 2, 3], [1, 2, None]], GRID[1]]
    rows = decoded_table(NESTED, batch_of(f=lists))
    assert rows.x.tolist() == GRID
    assert faults_of(rows) == {
        1: ("missing_field", "[record] f: expected 3 numbers, found null in a list"),
        2: ("wrong_shape", "[record] f: expected 3 numbers, found 1 in a list"),
        3: ("wrong_shape", "[record] f: expected 2 x 3 numbers, found 1"),
        4: ("missing_field", "[record] f: expected 2 x 3 numbers, found null"),
        5: ("missing_field", "[record] f: expected a number, found null in a list 2 deep"),
    }


def test_a_fixed_size_that_is_another_kills_every_row() -> None:
    rows = decoded_table(PAIRS, batch_of(id=[1, 2], f=pa.array([[1, 2, 3]] * 2, pa.list_(pa.float32(), 3))))
    assert faults_of(rows) == dict.fromkeys(range(2), ("wrong_shape", "[record] f: expected 2 numbers, found 3"))


def test_null_and_nan_may_stand_for_missing() -> None:
    schema = RecordSchema(features=["a", "b", "c"], missing="nan", dtype="float64")
    rows = decoded_table(schema, batch_of(a=pa.array([1, None]), b=[float("nan"), 2.5]))
    np.testing.assert_array_equal(rows.x, [[1, np.nan, np.nan], [np.nan, 2.5, np.nan]])
    lists = RecordSchema(features="f", shape=(2,), missing="nan", dtype="float64")
    rows = decoded_table(lists, batch_of(f=[[1, None], None, [float("inf"), 2]]))
    np.testing.assert_array_equal(rows.x, [[1, np.nan]])
    assert {place: reason for place, (reason, _) in faults_of(rows).items()} == {1: "missing_field", 2: "not_finite"}


def test_null_scalars_and_ids_die() -> None:
    rows = decoded_table(FIELDS, batch_of(id=["x", None, "z"], a=pa.array([1, 2, None]), b=[1.0, 2.0, 3.0]))
    assert rows.x.tolist() == [[1, 1]]
    assert faults_of(rows) == {
        1: ("missing_field", "[record] id: expected an integer or a string, found null"),
        2: ("missing_field", "[record] a: expected a number, found null"),
    }
    assert [reject.id for reject in rows.rejects] == [None, "z"]


@pytest.mark.parametrize(
    ("columns", "reason", "error"),
    [
        ({"id": [1], "b": [1]}, "missing_field", "[record] a: expected a column of that name, found id, b"),
        ({"a": [1], "b": [1]}, "missing_field", "[record] id: expected a column of that name, found a, b"),
        ({"id": [1], "a": ["1"], "b": [1]}, "wrong_type", "[record] a: expected a number, found string"),
        ({"id": [1], "a": [True], "b": [1]}, "wrong_type", "[record] a: expected a number, found bool"),
        ({"id": [1], "a": [[1]], "b": [1]}, "wrong_shape", "[record] a: expected a number, found list<item: int64>"),
        ({"id": [1.5], "a": [1], "b": [1]}, "wrong_type", "[record] id: expected an integer or a string, found double"),
        ({"id": [1], "a": [None], "b": [1]}, "missing_field", "[record] a: expected a number, found null"),
    ],
)
def test_columns_that_will_not_do_kill_every_row(columns: dict[str, Any], reason: str, error: str) -> None:
    rows = decoded_table(FIELDS, batch_of(**columns))
    assert faults_of(rows) == {0: (reason, error)}


@pytest.mark.parametrize(
    ("column", "reason", "found"),
    [
        (pa.array([1.5]), "wrong_shape", "double"),
        (pa.array(["1"]), "wrong_type", "string"),
        (pa.array([[[1, 2]]]), "wrong_shape", "list<item: list<item: int64>>"),
        (pa.array([["1", "2"]]), "wrong_type", "list<item: string>"),
        (pa.array([{"x": 1}]), "wrong_type", "struct<x: int64>"),
        (pa.array([None]), "missing_field", "null"),
        (pa.array([None], pa.list_(pa.null())), "missing_field", "null"),
    ],
)
def test_what_is_no_list_of_numbers(column: Any, reason: str, found: str) -> None:
    rows = decoded_table(PAIRS, batch_of(id=[7], f=column))
    assert faults_of(rows) == {0: (reason, f"[record] f: expected 2 numbers, found {found}")}
    assert rows.rejects[0].id == 7


@pytest.mark.parametrize(
    "column",
    [
        pa.array(["p", "q"]), pa.array(["p", "q"], pa.large_string()), pa.array(["p", "q"]).dictionary_encode(),
        pa.array(["p", "q"], pa.string_view()),
    ],
    ids=lambda each: str(each.type),
)  # fmt: skip
def test_ids_of_any_text(column: Any) -> None:
    rows = decoded_table(FIELDS, batch_of(id=column, a=[1, 2], b=[3, 4]))
    assert ids_of(rows) == ["p", "q"]
    assert is_arrow(rows.ids)


def test_carried_columns_come_as_they_are_and_absent_ones_as_nothing() -> None:
    schema = RecordSchema(features=["a"], carry=["s", "gone", "a"])
    rows = decoded_table(schema, batch_of(s=[{"x": 1}, None], a=[1, float("nan")]))
    assert [list(values(column)) for column in rows.carry] == [[{"x": 1}], [UNSET], [1]]


def test_of_two_columns_of_one_name_the_first_counts() -> None:
    batch = pa.record_batch([pa.array([1.0]), pa.array([2.0])], names=["f", "f"])
    assert decoded_table(RecordSchema(features=["f"]), batch).x.tolist() == [[1]]


def test_chunks_of_several_schemas_and_dictionaries_are_decoded_together() -> None:
    schema = RecordSchema(id="id", features=["a"], carry=["c"])
    batches = [
        batch_of(id=["p"], a=[1], c=pa.array(["x"]).dictionary_encode()),
        batch_of(id=["q", None], a=[2, 3], c=pa.array(["y", "z"]).dictionary_encode()),
        batch_of(a=[4.5], id=[5]),
    ]
    rows = decoded_table(schema, *batches)
    assert ids_of(rows) == ["p", "q", 5]
    assert rows.x.tolist() == [[1], [2], [4.5]]
    assert list(values(rows.carry[0])) == ["x", "y", UNSET]
    assert [(reject.index, reject.position) for reject in rows.rejects] == [(2, 3)]


@given(st.lists(st.none() | st.lists(st.none() | st.floats(width=32), max_size=3), min_size=1, max_size=12), st.data())
def test_it_means_the_same_as_json(lists: list[Any], data: st.DataObject) -> None:
    missing: Any = data.draw(st.sampled_from(["reject", "nan"]))
    schema = RecordSchema(id="id", features="f", shape=(2,), missing=missing)
    batch = batch_of(id=range(len(lists)), f=pa.array(lists, pa.list_(pa.float32())))
    cut = data.draw(st.integers(0, len(lists)))
    table = decoded_chunks(schema, table_chunks(*(part for part in (batch[:cut], batch[cut:]) if len(part))))
    lines = lines_decoded(schema, *(_line(i, each, missing) for i, each in enumerate(lists)))
    assert ids_of(table) == list(lines.ids)
    np.testing.assert_array_equal(table.x, lines.x)
    assert {place: reason for place, (reason, _) in faults_of(table).items() if reason != "not_finite"} == {
        reject.index: reject.reason for reject in lines.rejects if reject.reason != "not_finite"
    }


def _line(record_id: int, numbers: list[Any] | None, missing: str) -> bytes:
    text = "null" if numbers is None else "[" + ",".join(_number(each, missing) for each in numbers) + "]"
    return f'{{"id":{record_id},"f":{text}}}'.encode()


def _number(value: float | None, missing: str) -> str:
    if value is None:
        return "null"
    if np.isfinite(value):
        return repr(value)
    if np.isnan(value) and missing == "nan":
        return "null"
    # JSON has no such numbers; what is too large for a float32 dies like them.
    return "-1e60" if value < 0 else "1e60"
