"""Scores as columns, for outputs whose records are rows of a table.

A payload is an IPC stream of its own: schema, one record batch, end. So payloads can be made in any process and order,
and what types the columns of a file have is settled where its payloads are put together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
from msgspec import UNSET, Raw

from streambatch.codecs.columns import Column, is_arrow, values
from streambatch.core.outcomes import RecordId
from streambatch.core.schema import RecordSchema
from streambatch.core.text import encodable
from streambatch.core.types import FloatArray

STREAM_END = b"\xff\xff\xff\xff\0\0\0\0"
"""The end mark of an IPC stream."""

_TYPES = {
    "bool": pa.bool_(),
    "int32": pa.int32(),
    "int64": pa.int64(),
    "float32": pa.float32(),
    "float64": pa.float64(),
    "string": pa.string(),
    "timestamp": pa.timestamp("us", "UTC"),
}
_LIST_TYPES: dict[str, Any] = {
    "bool": list[bool | None],
    "int32": list[int | None],
    "int64": list[int | None],
    "float32": list[float | None],
    "float64": list[float | None],
    "string": list[str | None],
    "timestamp": list[str | None],
}
"""What JSON is decoded as in one call."""
_FAILURES = (pa.ArrowException, ValueError, TypeError, OverflowError)


class TableEncoder:
    """Makes a record batch of scores; see `Encoder`.

    Columns: `id`, int64 if all ids of the batch are such integers, else string; `score`, float32 or float64 as the
    model has it, a list of k for scores of width k; carried fields of their declared type, where none is declared as
    they come from a table and else as text. Text is a string's own, JSON for other values. A value that is absent, or
    isn't of the declared type, is null.
    """

    def __init__(self, schema: RecordSchema) -> None:
        self._names = ["id", "score", *schema.carry]
        self._types = schema.carry_types

    def header(self) -> bytes:
        """Return nothing: what a stream starts with depends on its first scores."""
        return b""

    def encode(self, ids: Sequence[RecordId], scores: FloatArray, carry: Sequence[Sequence[Any]]) -> bytes:
        """Return n scores, (n,) or (n, k), as an IPC stream."""
        carried = [_carried(column, kind) for column, kind in zip(carry, self._types, strict=True)]
        batch = pa.record_batch([_ids(ids), _scores(scores), *carried], names=self._names)
        return b"".join([batch.schema.serialize(), batch.serialize(), STREAM_END])


def _ids(ids: Column) -> Any:
    if is_arrow(ids):
        array = _without_dictionary(ids)
        try:
            return array.cast(pa.int64() if pa.types.is_integer(array.type) else pa.string())
        except pa.ArrowInvalid:
            # Unsigned integers may be too large for int64: then all ids of the batch are text.
            return array.cast(pa.string())
    try:
        return pa.array(ids, pa.int64() if isinstance(ids[0], int) else pa.string())
    except _FAILURES:
        return pa.array([encodable(str(one)) for one in ids], pa.string())


def _scores(scores: FloatArray) -> Any:
    numbers = pa.array(np.ascontiguousarray(scores).reshape(-1))
    return numbers if scores.ndim == 1 else pa.FixedSizeListArray.from_arrays(numbers, scores.shape[1])


def _carried(column: Column, kind: str | None) -> Any:
    if is_arrow(column):
        array = _without_dictionary(column)
        if kind is None:
            return array
    else:
        kind = kind or "string"
        array = _of_list(column, kind)
    try:
        return _cast(array, kind)
    except _FAILURES:
        return pa.array([_one(value, kind) for value in values(column)], _TYPES[kind])


def _of_list(column: Column, kind: str) -> Any:
    """Return what can be made of all values in one go, None if one needs a look of its own."""
    if all(type(value) is Raw or value is UNSET for value in column):
        # One call of the decoder for all values, which are JSON as it was written.
        data = b",".join([b"null" if value is UNSET else value for value in column])
        try:
            return pa.array(msgspec.json.decode(b"[%b]" % data, type=_LIST_TYPES[kind]))
        except _FAILURES:
            return None
    try:
        return pa.array([None if value is UNSET else value for value in column], pa.string())
    except _FAILURES:
        return None


def _cast(array: Any, kind: str) -> Any:
    """Cast to a declared type; times without a zone are UTC. Raises one of `_FAILURES`."""
    if array is None:
        raise ValueError("no array")
    if kind == "timestamp" and pa.types.is_string(array.type):
        try:
            return array.cast(_TYPES[kind])
        except pa.ArrowInvalid:
            # pyarrow takes no text without a zone for a type with one.
            array = array.cast(pa.timestamp("us"))
    return array.cast(_TYPES[kind])


def _one(value: Any, kind: str) -> Any:
    """Return one value as its declared type; null if it is none."""
    if type(value) is Raw:
        value = msgspec.json.decode(value)
    if value is None or value is UNSET:
        return None
    if kind == "string":
        return encodable(value if isinstance(value, str) else msgspec.json.encode(value, enc_hook=str).decode())
    try:
        return _cast(pa.array([value]), kind)[0].as_py()
    except _FAILURES:
        return None


def _without_dictionary(array: Any) -> Any:
    """Return an array without a dictionary: in one stream, dictionaries of several batches would be mixed up."""
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    # A dictionary inside of lists or structs, which `dictionary_decode` doesn't reach.
    if "dictionary<" in str(array.type):
        array = pa.array(array.to_pylist())
    return array.storage if isinstance(array, pa.ExtensionArray) else array
