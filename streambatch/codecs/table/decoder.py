"""From chunks of table rows to ids, features and carried columns; faulty rows are found by masks.

No Python object is made per value: ids and carried fields stay pyarrow arrays, features become a numpy array that
shares the table's memory where the types allow it. Only a record that dies is looked at alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from msgspec import UNSET

from streambatch.codecs.columns import Column, concatenated, item, take
from streambatch.codecs.rows import Rejection, reject
from streambatch.codecs.table.features import Faults, list_features, problem_of_type, scalar_features
from streambatch.core.chunks import Chunk
from streambatch.core.outcomes import Reject, Rows
from streambatch.core.schema import RecordSchema
from streambatch.core.types import FloatArray, IntArray

_NAMES_SHOWN = 20


class TableLayout(NamedTuple):
    """Which columns of a table are asked for, and which of those is what; None: there is no such column.

    problem: why none of its rows can be decoded.
    """

    schema: Any
    wanted: list[int]
    id: int | None
    features: list[int | None]
    carry: list[int | None]
    problem: Rejection | None


class _Decoded(NamedTuple):
    ids: Column
    x: FloatArray
    carry: list[Column]
    places: IntArray | range


class TableDecoder:
    """Decodes the chunks of one source, all of them `TableChunk`; see `Decoder`.

    An id is an integer or text, a number anything that is one, decimals included; null is a missing value. A carried
    column that is absent gives UNSET. Of two columns of one name the first counts.
    """

    def __init__(self, schema: RecordSchema) -> None:
        self._schema = schema
        self._layout: TableLayout | None = None

    def decode(self, chunks: Sequence[Chunk]) -> Rows:
        rejects: list[Reject] = []
        parts, start = [], 0
        for _, run in groupby(chunks, _schema_of):
            group = list(run)
            parts.append(self._decode_run(group, start, rejects))
            start += sum(chunk.count for chunk in group)
        ids, x, carry, places = parts[0] if len(parts) == 1 else _all(parts)
        return Rows(ids, x, carry, np.asarray(places) if rejects else None, rejects)

    def _decode_run(self, chunks: Sequence[Chunk], start: int, rejects: list[Reject]) -> _Decoded:
        """Decode chunks of one table schema, of which the first record is at `start`; make rejects of bad ones."""
        layout = self._layout_of(chunks[0])
        rows = _joined(chunks, layout)
        faults = Faults(rows.num_rows)
        ids = self._ids(chunks, rows, layout, faults)
        x, kept = self._features(rows, layout, faults)
        carry: list[Column] = [[UNSET] * rows.num_rows if at is None else rows.column(at) for at in layout.carry]
        if not faults.found:
            return _Decoded(ids, x, carry, range(start, start + rows.num_rows))
        self._reject(chunks, start, ids, faults, rejects)
        alive = faults.alive()
        kept_alive = alive if kept is None else alive[kept]
        places = start + np.flatnonzero(alive)
        return _Decoded(take(ids, alive), x[kept_alive], [take(column, alive) for column in carry], places)

    def _layout_of(self, chunk: Chunk) -> TableLayout:
        schema: Any = _schema_of(chunk)
        if self._layout is None or self._layout.schema != schema:
            self._layout = layout_of(schema, self._schema)
        return self._layout

    def _ids(self, chunks: Sequence[Chunk], rows: Any, layout: TableLayout, faults: Faults) -> Column:
        if self._schema.id is None:
            return concatenated([_ids_by_position(chunk) for chunk in chunks])
        at = layout.id
        if at is None:
            # Every row becomes a reject then: the layout has a problem.
            return [None] * rows.num_rows
        ids = rows.column(at)
        if pa.types.is_dictionary(ids.type):
            ids = ids.dictionary_decode()
        if ids.null_count:
            error = f"[record] {self._schema.id}: expected an integer or a string, found null"
            faults.add(np.flatnonzero(ids.is_null().to_numpy(zero_copy_only=False)), "missing_field", error)
        return ids  # type: ignore[no-any-return]  # pyarrow has no types

    def _features(self, rows: Any, layout: TableLayout, faults: Faults) -> tuple[FloatArray, IntArray | None]:
        """Return features and the rows that they are of: all but some of those with a fault; None for all."""
        if layout.problem is not None:
            every = np.arange(rows.num_rows)
            faults.add(every, layout.problem.reason, layout.problem.error)
            return np.empty((0, *self._schema.feature_shape), self._schema.numpy_dtype), every[:0]
        columns = [None if at is None else rows.column(at) for at in layout.features]
        if isinstance(self._schema.features, str) and pa.types.is_nested(_stored(columns[0]).type):
            return list_features(_stored(columns[0]), self._schema, faults)
        return scalar_features(columns, rows.num_rows, self._schema, faults), None

    def _reject(self, chunks: Sequence[Chunk], start: int, ids: Column, faults: Faults, rejects: list[Reject]) -> None:
        starts = np.cumsum([0, *(chunk.count for chunk in chunks)])
        has_ids = self._schema.id is not None
        for row in sorted(faults.found):
            reason, error = faults.found[row]
            which = int(np.searchsorted(starts, row, side="right")) - 1
            chunk, at = chunks[which], row - int(starts[which])
            rejection = Rejection("validate", reason, error, _id_of(ids, row) if has_ids else None)
            rejects.append(reject(chunk, at, start + row, rejection, bytes(chunk.raw(at)), self._schema))


def layout_of(table: Any, schema: RecordSchema) -> TableLayout:
    """Return where a table of that pyarrow schema has what the record schema asks for, and whether it can be used."""
    where = {name: at for at, name in reversed(list(enumerate(table.names)))}
    features = [schema.features] if isinstance(schema.features, str) else schema.features
    named = [*features, *schema.carry, *([] if schema.id is None else [schema.id])]
    wanted = sorted({where[name] for name in named if name in where})
    place = {table.names[at]: number for number, at in enumerate(wanted)}
    return TableLayout(
        table,
        wanted,
        None if schema.id is None else place.get(schema.id),
        [place.get(name) for name in features],
        [place.get(name) for name in schema.carry],
        _problem_of({name: table.field(where[name]).type for name in table.names}, features, schema),
    )


def _problem_of(types: Mapping[str, Any], features: Sequence[str], schema: RecordSchema) -> Rejection | None:
    """Return why no row with columns of these types can be decoded, if so."""
    may_miss = schema.missing == "nan" and isinstance(schema.features, list)
    needed = [*([] if schema.id is None else [schema.id]), *([] if may_miss else features)]
    absent = next((name for name in needed if name not in types), None)
    if absent is not None:
        error = f"[record] {absent}: expected a column of that name, found {_named(list(types))}"
        return Rejection("validate", "missing_field", error)
    if schema.id is not None and not _may_be_id(types[schema.id]):
        error = f"[record] {schema.id}: expected an integer or a string, found {types[schema.id]}"
        return Rejection("validate", "wrong_type", error)
    problems = (problem_of_type(types[name], at, schema) for at, name in enumerate(features) if name in types)
    return next(filter(None, problems), None)


def _may_be_id(kind: Any) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    types = pa.types
    is_text = types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
    return bool(is_text or types.is_integer(kind) or types.is_null(kind))


def _joined(chunks: Sequence[Chunk], layout: TableLayout) -> Any:
    """Return the columns of all chunks that are asked for, each once; copied only if there are several chunks."""
    # Only the columns that are asked for: joining copies all that there are.
    slices = [chunk.data().select(layout.wanted) for chunk in chunks]  # type: ignore[union-attr]  # record batches
    if len(slices) == 1:
        return slices[0]
    return pa.Table.from_batches(slices).combine_chunks().to_batches()[0]


def _stored(column: Any) -> Any:
    return column.storage if isinstance(column, pa.ExtensionArray) else column


def _ids_by_position(chunk: Chunk) -> Any:
    """Return `<partition>:<position>` for the rows of a chunk."""
    # A record is named by where it ends: the number of the row after it.
    first = chunk.position - chunk.count + 1
    positions = pa.array(np.arange(first, first + chunk.count)).cast(pa.string())
    return pc.binary_join_element_wise(chunk.partition.name, positions, ":")


def _id_of(ids: Column, row: int) -> Any:
    value = item(ids, row)
    return value if isinstance(value, int | str) else None


def _all(parts: Sequence[_Decoded]) -> _Decoded:
    return _Decoded(
        concatenated([part.ids for part in parts]),
        np.concatenate([part.x for part in parts]),
        [concatenated(columns) for columns in zip(*(part.carry for part in parts), strict=True)],
        np.concatenate([part.places for part in parts]),
    )


def _schema_of(chunk: Chunk) -> Any:
    return chunk.payload.schema  # type: ignore[attr-defined]  # a record batch


def _named(names: Sequence[str]) -> str:
    more = ", ..." if len(names) > _NAMES_SHOWN else ""
    return ", ".join(names[:_NAMES_SHOWN]) + more if names else "no columns"
