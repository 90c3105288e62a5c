"""From columnar values to Python's own, for formats that are text.

Never fails: a time that Python has no type for becomes text, in ISO 8601 where pyarrow can write that.
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc


def plain_values(column: Any) -> list[Any]:
    """Return the values of a pyarrow array as numbers, text, times, lists and mappings; null is None."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        column, kind = column.dictionary_decode(), kind.value_type
    if pa.types.is_timestamp(kind) and kind.unit == "ns":
        return _nanosecond_texts(column)
    try:
        if (pa.types.is_time64(kind) or pa.types.is_duration(kind)) and kind.unit == "ns":
            # Python's own times end at microseconds; pyarrow would refuse to make them of nanoseconds.
            microseconds = pa.time64("us") if pa.types.is_time64(kind) else pa.duration("us")
            column = column.cast(microseconds, safe=False)
        return column.to_pylist()  # type: ignore[no-any-return]  # pyarrow has no types
    # One value that Python has no type for, such as a date past the year 9999, fails the whole column.
    except (ValueError, OverflowError, pa.ArrowException):
        return [_text(column.slice(at, 1)) for at in range(len(column))]


def plain_row(row: Any) -> dict[str, Any]:
    """Return the one row of a record batch; of two columns of one name the first counts."""
    values: dict[str, Any] = {}
    for name, column in zip(row.schema.names, row.columns, strict=True):
        if name not in values:
            values[name] = plain_values(column)[0]
    return values


def _nanosecond_texts(column: Any) -> list[Any]:
    """Return times to the nanosecond, which Python's own don't hold."""
    zone = "Z" if column.type.tz else ""
    # Without its zone: strftime then writes the stored number, which is UTC.
    utc = column.view(pa.timestamp("ns"))
    return pc.strftime(utc, f"%Y-%m-%dT%H:%M:%S{zone}").to_pylist()  # type: ignore[no-any-return]  # pyarrow has no types


def _text(column: Any) -> str | None:
    """Return the one value of a column as text."""
    if column.null_count:
        return None
    try:
        return str(column.cast(pa.string())[0])
    except (ValueError, pa.ArrowException):
        return str(column.to_string(skip_new_lines=True))[1:-1]
