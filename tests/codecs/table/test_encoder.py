"""Scores as IPC streams: types of the columns, ugly ids and carried values, nothing lost of a float."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET, Raw
from pyarrow import ipc

from streambatch.codecs.table.encoder import TableEncoder
from streambatch.core.errors import ConfigError
from streambatch.core.schema import ColumnType, RecordSchema
from streambatch.core.types import FloatArray


def encoded(ids: Any, scores: FloatArray, carry: Sequence[Any] = (), types: Any = None) -> Any:
    names = types if types is not None else [f"c{at}" for at in range(len(carry))]
    payload = TableEncoder(RecordSchema(features="x", shape=(1,), carry=names)).encode(ids, scores, carry)
    return ipc.open_stream(payload).read_all()


def carried(values: Any, kind: ColumnType | None = None) -> list[Any]:
    types = ["c"] if kind is None else {"c": kind}
    table = encoded(list(range(len(values))), np.zeros(len(values)), [values], types)
    found: list[Any] = table["c"].to_pylist()
    return found


def raws(*texts: str | None) -> list[Any]:
    return [UNSET if text is None else Raw(text.encode()) for text in texts]


@given(st.lists(st.floats(width=32), min_size=1), st.sampled_from(["f4", "f8"]), st.integers(1, 3))
def test_scores_keep_every_bit(numbers: list[float], dtype: str, width: int) -> None:
    scores = np.repeat(np.array(numbers, dtype)[:, None], width, axis=1)
    table = encoded(list(range(len(scores))), scores)
    found = table["score"].combine_chunks().flatten().to_numpy()
    assert found.dtype == dtype
    assert found.tobytes() == scores.tobytes()
    flat = encoded(list(range(len(scores))), scores[:, 0])["score"].to_numpy()  # not contiguous
    assert flat.tobytes() == scores[:, 0].tobytes()


@pytest.mark.parametrize(
    ("ids", "kind", "found"),
    [
        ([1, -(2**63)], pa.int64(), [1, -(2**63)]),
        (["a", ""], pa.string(), ["a", ""]),
        ([1, "a"], pa.string(), ["1", "a"]),
        (["a", 1], pa.string(), ["a", "1"]),
        ([1, 2**63], pa.string(), ["1", str(2**63)]),
        (["caf\udce9"], pa.string(), ["caf\\xe9"]),
        (pa.array([1, 2], pa.int16()), pa.int64(), [1, 2]),
        (pa.array([1, 2**63], pa.uint64()), pa.string(), ["1", str(2**63)]),
        (pa.array(["a", "b", "a"]).dictionary_encode(), pa.string(), ["a", "b", "a"]),
        (pa.array(["a", "b"], pa.large_string()), pa.string(), ["a", "b"]),
    ],
)
def test_ids_are_integers_or_text(ids: Any, kind: Any, found: list[Any]) -> None:
    column = encoded(ids, np.zeros(len(ids)))["id"]
    assert column.type == kind
    assert column.to_pylist() == found


def test_a_table_goes_through_without_a_copy_of_its_values() -> None:
    ids, day = pa.array(range(10)), pa.array([1, None] * 5, pa.date32())
    table = encoded(ids[3:6], np.zeros(3), [day[3:6]])
    assert table["id"].to_pylist() == [3, 4, 5]
    assert table["c0"].type == pa.date32()
    assert table["c0"].null_count == 2


def test_what_has_no_declared_type_is_text() -> None:
    assert carried(raws('"q\\u00e9"', "1.50", "null", None, '{"a": [1]}')) == ["qé", "1.5", None, None, '{"a":[1]}']
    assert carried(["x", UNSET, ""]) == ["x", None, ""]
    assert carried([1, datetime(2020, 1, 1), None, "x"]) == ["1", '"2020-01-01T00:00:00"', None, "x"]


NOON = datetime(2014, 7, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("kind", "values", "found"),
    [
        ("int64", raws("1", None, "null"), [1, None, None]),
        ("int64", raws("1", '"x"', "1.5", "99999999999999999999"), [1, None, None, None]),
        ("int32", raws("1", str(2**31)), [1, None]),
        ("int64", ["12", "", UNSET, "-1"], [12, None, None, -1]),
        ("float64", raws("1", "2.5", "[]"), [1.0, 2.5, None]),
        ("float32", ["0.5", "x"], [0.5, None]),
        ("bool", raws("true", "false", None), [True, False, None]),
        ("bool", ["true", "maybe"], [True, None]),
        ("string", raws('"x"', "1"), ["x", "1"]),
        ("timestamp", ["2014-07-01 12:00:00"], [NOON]),
        ("timestamp", raws('"2014-07-01T12:00:00Z"', None), [NOON, None]),
        ("timestamp", raws('"2014-07-01T14:00:00+02:00"', '"2014-07-01 12:00:00"', '"noon"'), [NOON, NOON, None]),
        ("int64", pa.array(["1", "x"]), [1, None]),
        ("string", pa.array([1, None]), ["1", None]),
        ("string", pa.array(["a", "b"]).dictionary_encode(), ["a", "b"]),
        ("int64", [UNSET, UNSET], [None, None]),
    ],
)
def test_declared_types(kind: ColumnType, values: Any, found: list[Any]) -> None:
    assert carried(values, kind) == found


def test_a_nested_dictionary_needs_none() -> None:
    words = pa.ListArray.from_arrays([0, 2, 3], pa.array(["a", "b", "a"]).dictionary_encode())
    assert carried(words) == [["a", "b"], ["a"]]


def test_every_stream_is_one_of_its_own() -> None:
    encoder = TableEncoder(RecordSchema(features="x", shape=(1,)))
    assert encoder.header() == b""
    source = pa.BufferReader(encoder.encode([1], np.zeros(1), []) + encoder.encode(["a"], np.zeros((1, 2)), []))
    assert [ipc.open_stream(source).read_all().num_columns for _ in range(2)] == [2, 2]


def test_carry_is_a_list_or_a_table_of_types() -> None:
    assert RecordSchema(features=["a"], carry=["ts"]).carry_types == (None,)
    assert RecordSchema(features=["a"], carry={"ts": "string"}).carry_types == ("string",)
    with pytest.raises(ConfigError, match=r"carry.ts: found 'text'"):
        RecordSchema(features=["a"], carry={"ts": "text"})  # type: ignore[dict-item]
    with pytest.raises(ConfigError, match="fields other than id and score"):
        RecordSchema(features=["a"], carry={"id": "string"})
