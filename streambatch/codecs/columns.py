"""Columns of ids and carried values: Python lists, or pyarrow arrays where the format is columnar.

Both are narrowed, joined and read here, so that no other module depends on which of the two a column is. pyarrow itself
is not imported: a pipeline of text formats starts without it.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import compress
from typing import Any

from streambatch.core.types import BoolArray

Column = Sequence[Any]
"""A list, or a `pyarrow.Array`: anything else that has a length is read like a list."""


def is_arrow(column: Column) -> bool:
    """Whether a column is a pyarrow array."""
    return hasattr(column, "to_pylist")


def take(column: Column, mask: BoolArray) -> Column:
    """Return the values that `mask` (n,) marks, as the kind of column that they came in."""
    if is_arrow(column):
        return column.filter(mask)  # type: ignore[attr-defined,no-any-return]  # pyarrow has no types
    return list(compress(column, mask.tolist()))


def concatenated(columns: Sequence[Column]) -> Column:
    """Return one column; an array if all are arrays of one type, else a list."""
    first = columns[0]
    if len(columns) == 1:
        return first
    if all(map(is_arrow, columns)) and all(column.type == first.type for column in columns):  # type: ignore[attr-defined]
        import pyarrow as pa

        return pa.chunked_array(columns).combine_chunks()  # type: ignore[no-any-return]  # pyarrow has no types
    return [value for column in columns for value in values(column)]


def item(column: Column, at: int) -> Any:
    """Return one value as Python's own."""
    return values(column[at : at + 1])[0] if is_arrow(column) else column[at]


def values(column: Column) -> Column:
    """Return the values as Python's own, which JSON has a form for."""
    if not is_arrow(column):
        return column
    from streambatch.codecs.plain import plain_values

    return plain_values(column)
