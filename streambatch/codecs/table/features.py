"""From columns of numbers, or of lists of numbers, to an array of features, and which rows have none.

The first fault of a row counts. Rows are taken out of a column level by level of its lists, so that what is left has
one length everywhere and needs no more than another shape.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
import pyarrow as pa

from streambatch.codecs.rows import Rejection, name_of
from streambatch.core.chunks import Reason
from streambatch.core.schema import RecordSchema
from streambatch.core.types import BoolArray, FloatArray, IntArray


class Faults:
    """Which of `rows` rows can't be decoded: row to reason and error."""

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.found: dict[int, tuple[Reason, str]] = {}

    def add(self, rows: IntArray, reason: Reason, error: str) -> None:
        """Note a fault of rows; the first fault of each row counts."""
        for row in rows.tolist():
            self.found.setdefault(row, (reason, error))

    def alive(self) -> BoolArray:
        """Return the mask of the other rows."""
        mask = np.ones(self.rows, bool)
        mask[list(self.found)] = False
        return mask


class _Fault(Exception):
    """Rows (a mask) that keep a column of lists from being an array."""

    def __init__(self, rows: BoolArray, reason: Reason, found: str | IntArray, depth: int) -> None:
        self.rows, self.reason, self.found, self.depth = rows, reason, found, depth


def problem_of_type(kind: Any, at: int, schema: RecordSchema) -> Rejection | None:
    """Return why a column of that type can't be feature column `at`, if so."""
    if not isinstance(schema.features, str):
        if _is_number(kind):
            return None
        error = f"{name_of(schema, (at,))}: expected a number, found {kind}"
        return _wrong(error, "wrong_shape" if pa.types.is_nested(kind) else "wrong_type")
    shape, leaf = schema.feature_shape, kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind
    if pa.types.is_null(leaf) and prod(shape) > 1:
        return _wrong(f"{name_of(schema, ())}: expected {_listed(shape)}, found null", "missing_field")
    if _is_number(leaf) and prod(shape) == 1:
        return None
    depth = 0
    while _is_list(leaf):
        leaf, depth = leaf.value_type, depth + 1
    if _is_number(leaf) and (depth == len(shape) or _is_tensor(kind, shape)):
        return None
    reason: Reason = "wrong_shape" if _is_number(leaf) else "wrong_type"
    return _wrong(f"{name_of(schema, ())}: expected {_listed(shape)}, found {kind}", reason)


def scalar_features(columns: Sequence[Any], rows: int, schema: RecordSchema, faults: Faults) -> FloatArray:
    """Return the numbers of one column each, (n, *shape); a column that is None, and null, is NaN."""
    if len(columns) == 1 and columns[0] is not None:
        _note_nulls(columns[0], 0, schema, faults)
        return _numbers(columns[0], schema).reshape(rows, *schema.feature_shape)
    x = np.empty((rows, len(columns)), schema.numpy_dtype)
    for at, column in enumerate(columns):
        if column is None:
            x[:, at] = np.nan
            continue
        _note_nulls(column, at, schema, faults)
        x[:, at] = _numbers(column, schema)
    return x


def list_features(column: Any, schema: RecordSchema, faults: Faults) -> tuple[FloatArray, IntArray | None]:
    """Return the numbers of one column of lists, (m, *shape), and the m rows that have them all; None for all."""
    rows: IntArray | None = None
    while len(column):
        try:
            return _array(column, schema).reshape(len(column), *schema.feature_shape), rows
        except _Fault as fault:
            before = np.arange(len(column)) if rows is None else rows
            _tell(fault, before, schema, faults)
            # The rows of this fault go, and the others are tried again: each round takes out at least one.
            rows = before[~fault.rows]
            column = column.filter(pa.array(~fault.rows))
    return np.empty((0, *schema.feature_shape), schema.numpy_dtype), rows


def _array(column: Any, schema: RecordSchema) -> FloatArray:
    """Return the numbers of rows of which every one has the right shape. Raises _Fault at the first level of lists
    where one hasn't."""
    rows, shape = len(column), schema.feature_shape
    # A tensor type holds each row in one flat list, whatever its shape.
    sizes = shape if _is_list(column.type.value_type) or len(shape) == 1 else (prod(shape),)
    for depth, size in enumerate(sizes):
        _check(_nulls(column), rows, "missing_field", "null", depth)
        if pa.types.is_fixed_size_list(column.type):
            length, start, count = column.type.list_size, column.offset, len(column)
            if length != size:
                _check(np.ones(count, bool), rows, "wrong_shape", np.full(count, length), depth)
            # `values` are those of all rows that share the memory: cut to the rows of this slice.
            column = column.values.slice(start * length, count * length)
        else:
            offsets = column.offsets.to_numpy()
            lengths = np.diff(offsets)
            _check(lengths != size, rows, "wrong_shape", lengths, depth)
            column = column.values.slice(int(offsets[0]), int(offsets[-1] - offsets[0]))
    if schema.missing == "reject":
        _check(_nulls(column), rows, "missing_field", "null", len(shape))
    return _numbers(column, schema)


def _check(bad: BoolArray | None, rows: int, reason: Reason, found: str | IntArray, depth: int) -> None:
    """Raise _Fault for the rows that have a bad element. bad: a mask of the elements at that depth, row by row."""
    if bad is None or not bad.any():
        return
    if not isinstance(found, str):
        # Of each row the first bad length.
        found = found.reshape(rows, -1)[np.arange(rows), bad.reshape(rows, -1).argmax(axis=1)]
    raise _Fault(np.asarray(bad.reshape(rows, -1).any(axis=1)), reason, found, depth)


def _tell(fault: _Fault, rows: IntArray, schema: RecordSchema, faults: Faults) -> None:
    shape = schema.feature_shape[fault.depth :]
    name, expected = name_of(schema, ()), _listed(shape) if shape else "a number"
    bad = np.flatnonzero(fault.rows)
    where = "" if fault.depth == 0 else " in a list" if fault.depth == 1 else f" in a list {fault.depth} deep"
    if isinstance(fault.found, str):
        faults.add(rows[bad], fault.reason, f"{name}: expected {expected}, found {fault.found}{where}")
        return
    for length in np.unique(fault.found[bad]).tolist():
        found = rows[bad[fault.found[bad] == length]]
        faults.add(found, fault.reason, f"{name}: expected {expected}, found {length}{where}")


def _note_nulls(column: Any, at: int, schema: RecordSchema, faults: Faults) -> None:
    nulls = _nulls(column) if schema.missing == "reject" else None
    if nulls is not None:
        element = (at,) if isinstance(schema.features, list) else ()
        faults.add(np.flatnonzero(nulls), "missing_field", f"{name_of(schema, element)}: expected a number, found null")


def _nulls(column: Any) -> BoolArray | None:
    """Return the mask of null values; None if there are none."""
    # A null may lie in the dictionary itself, where the column's own null_count doesn't see it.
    if pa.types.is_dictionary(column.type) and column.dictionary.null_count:
        column = column.dictionary_decode()
    return np.asarray(column.is_null().to_numpy(zero_copy_only=False)) if column.null_count else None


def _numbers(column: Any, schema: RecordSchema) -> FloatArray:
    """Return numbers in the schema's type, sharing the column's memory if it is of that type; null becomes NaN."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_decimal(column.type) or pa.types.is_null(column.type):
        column = column.cast(pa.float64())
    numbers = column.to_numpy(zero_copy_only=False)
    if numbers.dtype.kind in "iu":
        numbers = numbers.astype(np.float64)
    with np.errstate(over="ignore"):
        return np.asarray(numbers.astype(schema.numpy_dtype, copy=False))


def _is_number(kind: Any) -> bool:
    types = pa.types
    if types.is_dictionary(kind):
        kind = kind.value_type
    return bool(types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind) or types.is_null(kind))


def _is_tensor(kind: Any, shape: tuple[int, ...]) -> bool:
    """Whether a type holds arrays of a shape, stored row by row."""
    if not isinstance(kind, pa.FixedShapeTensorType) or tuple(kind.shape) != shape:
        return False
    return list(kind.permutation or range(len(shape))) == list(range(len(shape)))


def _is_list(kind: Any) -> bool:
    types = pa.types
    return bool(types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind))


def _listed(shape: Sequence[int]) -> str:
    """Return what lists of a shape hold: `3 x 2 numbers`."""
    return f"{' x '.join(map(str, shape))} number{'s' * (prod(shape) != 1)}"


def _wrong(error: str, reason: Reason) -> Rejection:
    return Rejection("validate", reason, error)
