"""From the bytes of CSV records to their ids, numbers and carried fields: many at once, or one with its fault.

`table` and `row` mean the same by a field and by a number; `table` gives up where `row` would refuse a record.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from itertools import chain
from typing import Any, NamedTuple

import msgspec
import numpy as np
from msgspec import UNSET

from streambatch.codecs.csv.framing import fields_of
from streambatch.codecs.rows import Rejection, array_of, name_of, not_utf8
from streambatch.core.chunks import Reason
from streambatch.core.schema import RecordSchema
from streambatch.core.types import FloatArray

_COMMA, _NEWLINE = b",\n"
_NUMBERS = msgspec.json.Decoder(list[float])
_NUMBERS_OR_NULL = msgspec.json.Decoder(list[float | None])
_NAMES_SHOWN = 20
_TEXT_SHOWN = 24


class CsvLayout(NamedTuple):
    """Where in a record of `width` fields everything is; None: there is no such column.

    problem: why no record of such columns can be decoded.
    """

    width: int
    id: int | None
    features: list[int | None]
    carry: list[int | None]
    problem: Rejection | None


class Table(NamedTuple):
    """Decoded records: ids (n), empty without an id column; x (n, d); carried columns of n values each."""

    ids: list[str]
    x: FloatArray
    carry: list[list[Any]]


class Row(NamedTuple):
    """One decoded record."""

    id: str | None
    numbers: Sequence[float | None]
    carry: list[Any]


def layout_of(columns: tuple[str, ...] | None, schema: RecordSchema) -> CsvLayout:
    """Return where a record with these columns has what the schema asks for; a name that comes twice is the first."""
    # Backwards, so that of two columns of one name the first one stays.
    where = {name: at for at, name in reversed(list(enumerate(columns or ())))}
    features = [schema.features] if isinstance(schema.features, str) else schema.features
    needed = [*([] if schema.id is None else [schema.id]), *(features if schema.missing == "reject" else [])]
    absent = next((name for name in needed if name not in where), None)
    problem = None
    if absent is not None or not columns:
        error = f"[record] {absent or features[0]}: expected a column of that name, found {_named(columns)}"
        problem = Rejection("validate", "missing_field", error)
    return CsvLayout(
        len(columns or ()),
        None if schema.id is None else where.get(schema.id),
        [where.get(name) for name in features],
        [where.get(name) for name in schema.carry],
        problem,
    )


def table(data: bytes | memoryview, count: int, layout: CsvLayout, schema: RecordSchema) -> Table | None:
    """Return the `count` records of `data`, each ended by a newline; None unless every one of them is good."""
    try:
        text = str(data, "utf-8")
    except UnicodeDecodeError:
        return None
    wanted = [at for at in (layout.id, *layout.features, *layout.carry) if at is not None]
    # Commas and newlines may stand inside of quotes, where a plain split would cut.
    fields = None if '"' in text else _split(text, data, count, layout.width, wanted)
    if fields is None:
        fields = _parsed(text, count, layout.width, wanted)
    if fields is None:
        return None
    found = dict(zip(wanted, fields, strict=True))
    present = [at for at in layout.features if at is not None]
    numbers = _numbers(list(chain.from_iterable(found[at] for at in present)), schema)
    if numbers is None:
        return None
    x = np.full((count, len(layout.features)), np.nan, schema.numpy_dtype)
    x[:, [at is not None for at in layout.features]] = array_of(numbers, x.dtype).reshape(len(present), count).T
    carry = [[UNSET] * count if at is None else found[at] for at in layout.carry]
    return Table([] if layout.id is None else found[layout.id], x, carry)


def row(record: bytes, layout: CsvLayout, schema: RecordSchema) -> Row | Rejection:
    """Return what one record holds, or why it can't be decoded."""
    try:
        fields = fields_of(str(record, "utf-8"))
    except UnicodeDecodeError as error:
        return Rejection("decode", "invalid_encoding", not_utf8(error))
    except ValueError as error:
        return Rejection("decode", "invalid_csv", f"record: {error}")
    if len(fields) != layout.width:
        error_text = f"record: expected {layout.width} fields, found {len(fields)}"
        return Rejection("decode", "invalid_csv", error_text)
    record_id = None if layout.id is None else fields[layout.id]
    texts = ["" if at is None else fields[at] for at in layout.features]
    numbers = _numbers(texts, schema)
    if numbers is None:
        return _not_numbers(texts, record_id, schema)
    return Row(record_id, numbers, [UNSET if at is None else fields[at] for at in layout.carry])


def table_of(rows: Sequence[Row], layout: CsvLayout, schema: RecordSchema) -> Table:
    """Return records that were decoded one by one."""
    ids = [] if layout.id is None else [str(row.id) for row in rows]
    numbers = array_of([number for row in rows for number in row.numbers], schema.numpy_dtype)
    x = numbers.reshape(len(rows), len(layout.features))
    return Table(ids, x, [[row.carry[at] for row in rows] for at in range(len(layout.carry))])


def _split(text: str, data: bytes | memoryview, count: int, width: int, wanted: list[int]) -> list[list[str]] | None:
    """Return the wanted columns of records without a quote; None if not every record has `width` fields."""
    if "\r" in text:
        text = text.replace("\r\n", "\n")
        # A lone carriage return ends nothing and is refused outside of quotes: left to the parsers.
        if "\r" in text:
            return None
    codes = np.frombuffer(data, np.uint8)
    is_newline = codes[(codes == _COMMA) | (codes == _NEWLINE)] == _NEWLINE
    if len(is_newline) != count * width or np.count_nonzero(is_newline) != count:
        return None
    # The number of fields is right in all; now every newline must be the last of its record too.
    if not is_newline[width - 1 :: width].all():
        return None
    fields = text.replace("\n", ",").split(",")
    # Up to the last: the text ends with a newline, after which the split finds one more empty field.
    return [fields[at:-1:width] for at in wanted]


def _parsed(text: str, count: int, width: int, wanted: list[int]) -> list[list[str]] | None:
    """Return the wanted columns of any records; None if one is malformed or has not `width` fields."""
    try:
        # A blank line, which the reader gives as no fields, is no record.
        rows = [row for row in csv.reader(io.StringIO(text, newline="\n"), strict=True) if row]
    except csv.Error:
        return None
    if len(rows) != count or set(map(len, rows)) != {width}:
        return None
    return [[row[at] for row in rows] for at in wanted]


def _numbers(texts: list[str], schema: RecordSchema) -> Sequence[float | None] | None:
    """Return the numbers that `texts` are, None or NaN for a missing one; None if one text is no number.

    Read as a list in JSON they cost a third of what `float` takes for each.
    """
    listing = ",".join(texts)
    values = _listed(_NUMBERS, listing, len(texts))
    # A field that says `null` is text, and must not pass for a missing number.
    if values is None and schema.missing == "nan" and "null" not in listing:
        values = _listed(_NUMBERS_OR_NULL, ",".join([text or "null" for text in texts]), len(texts))
    if values is not None:
        return values
    # Python takes more for a number than JSON does: `+1`, `.5`, `1.`.
    slowly: list[float | None] = []
    for text in texts:
        value = _number(text, schema)
        if value is None:
            return None
        slowly.append(value)
    return slowly


def _listed(decoder: Any, listing: str, count: int) -> list[float | None] | None:
    """Return what a listing of numbers holds if all are numbers as JSON has them and none brought a comma."""
    try:
        values: list[float | None] = decoder.decode(f"[{listing}]")
    except msgspec.DecodeError:
        return None
    return values if len(values) == count else None


def _number(text: str, schema: RecordSchema) -> float | None:
    """Return the number that a field is, NaN for an empty one that may be missing; None if it is none."""
    if not text.strip():
        return np.nan if schema.missing == "nan" else None
    # `float` takes 1_000 and the digits of other scripts, which other readers of CSV don't.
    if "_" in text or not text.isascii():
        return None
    try:
        return float(text)
    except ValueError:
        return None


def _not_numbers(texts: list[str], record_id: str | None, schema: RecordSchema) -> Rejection:
    """Return which of the features of a record is no number."""
    number, text = next((at, text) for at, text in enumerate(texts) if _number(text, schema) is None)
    column = name_of(schema, (number,) if isinstance(schema.features, list) else ())
    reason: Reason = "wrong_type" if text.strip() else "missing_field"
    shown = repr(text if len(text) <= _TEXT_SHOWN else f"{text[:_TEXT_SHOWN]}...") if text.strip() else "an empty field"
    return Rejection("validate", reason, f"{column}: expected a number, found {shown}", record_id)


def _named(columns: tuple[str, ...] | None) -> str:
    if not columns:
        return "no header" if columns is None else "no readable header"
    more = ", ..." if len(columns) > _NAMES_SHOWN else ""
    return ", ".join(columns[:_NAMES_SHOWN]) + more
