"""The common part of decoders: they set dead chunks aside, put numbers into an array, and make rejects of bad records.

Invariant: each record of the chunks a decoder is given becomes either a row or a reject, and `Rows.index` and
`Reject.index` together name each of their places once.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from streambatch.codecs.columns import item, take
from streambatch.codecs.finite import all_finite
from streambatch.core.chunks import Chunk, Reason
from streambatch.core.outcomes import (
    RecordId,
    Reject,
    Rows,
    Stage,
)
from streambatch.core.schema import RecordSchema
from streambatch.core.types import BoolArray, FloatArray, IntArray

Strip = Callable[[memoryview], bytes]


class Rejection(NamedTuple):
    """Why a record died, and its id if that could be read."""

    stage: Stage
    reason: Reason
    error: str
    id: RecordId | None = None


def living(chunks: Sequence[Chunk], schema: RecordSchema) -> tuple[Sequence[Chunk], IntArray | None, list[Reject]]:
    """Separate chunks from those that died while they were framed.

    Returns the others, the place of each of their records among all (None if nothing died), and the rejects.
    """
    if not any(chunk.fault for chunk in chunks):
        return chunks, None, []
    # np.concatenate needs one array at least, even if all chunks died.
    live, places, rejects, start = [], [np.empty(0, np.int64)], [], 0
    for chunk in chunks:
        if chunk.fault is None:
            live.append(chunk)
            places.append(np.arange(start, start + chunk.count))
        else:
            rejection = Rejection("frame", chunk.fault.reason, chunk.fault.error)
            rejects.append(reject(chunk, 0, start, rejection, bytes(chunk.data()), schema))
        start += chunk.count
    return live, np.concatenate(places), rejects


def joined(chunks: Sequence[Chunk]) -> bytes | memoryview:
    """Return the records of all chunks with their framing; copied only if there are several."""
    return chunks[0].data() if len(chunks) == 1 else b"".join([chunk.data() for chunk in chunks])


def records_of(chunk: Chunk, strip: Strip) -> list[bytes]:
    """Return the records of a chunk without their framing."""
    payload = memoryview(chunk.payload)
    offsets = [chunk.start, *chunk.ends[chunk.first : chunk.last].tolist()]
    return [strip(payload[start:end]) for start, end in pairwise(offsets)]


def reject(chunk: Chunk, at: int, place: int, rejection: Rejection, record: bytes, schema: RecordSchema) -> Reject:
    """Return the reject of record `at` of a chunk, which is at `place` among all."""
    stage, reason, error, record_id = rejection
    position = chunk.position_of(at)
    if schema.id is None:
        record_id = chunk.id_of(at)
    is_cut = chunk.fault is not None and chunk.fault.truncated
    return Reject(place, chunk.partition, position, stage, reason, error, record, record_id, is_cut)


def ids_by_position(chunks: Sequence[Chunk], index: IntArray | None) -> list[RecordId]:
    """Return `<partition>:<position>` for the records of `chunks` at `index`; None: for all."""
    ids: list[RecordId] = []
    for chunk in chunks:
        ids += chunk.ids()
    return ids if index is None else [ids[place] for place in index.tolist()]


def array_of(values: Sequence[float | None], dtype: np.dtype[np.floating[Any]]) -> FloatArray:
    """Return (n,) float32 or float64; None becomes NaN, and a number too large for the type infinite."""
    x = np.empty(len(values), dtype)
    try:
        # A quarter faster than np.fromiter, which asks numpy's slow path about every single number.
        struct.pack_into(f"{len(x)}{dtype.char}", x.data, 0, *values)
    # There is a None, or a number too large for float32.
    except (struct.error, OverflowError):
        with np.errstate(over="ignore"):
            x[:] = np.array(values, np.float64)
    return x


def validate(rows: Rows, chunks: Sequence[Chunk], schema: RecordSchema, strip: Strip) -> Rows:
    """Make rejects of the rows that hold a number that is not finite; NaN passes where it stands for missing.

    chunks: those that the rows were decoded from.
    """
    x = rows.x
    if all_finite(x):
        return rows
    # Where numbers may be missing, NaN stands for one that is.
    wrong: BoolArray = np.isinf(x) if schema.missing == "nan" else ~np.isfinite(x)
    is_bad = np.asarray(wrong.reshape(len(x), -1).any(axis=1))
    if not is_bad.any():
        return rows
    places = np.arange(len(x)) if rows.index is None else rows.index
    rejects = list(rows.rejects)
    starts = np.cumsum([0, *(chunk.count for chunk in chunks)])
    for row in np.flatnonzero(is_bad).tolist():
        place = int(places[row])
        which = int(np.searchsorted(starts, place, side="right")) - 1
        chunk, at = chunks[which], place - int(starts[which])
        element = tuple(np.argwhere(wrong[row])[0].tolist())
        error = f"{name_of(schema, element)}: expected a finite {schema.dtype} number, found {x[row][element]}"
        rejection = Rejection("validate", "not_finite", error, item(rows.ids, row))
        rejects.append(reject(chunk, at, place, rejection, strip(chunk.raw(at)), schema))
    kept = ~is_bad
    carry = [take(column, kept) for column in rows.carry]
    return Rows(take(rows.ids, kept), x[kept], carry, places[kept], in_order(rejects))


def name_of(schema: RecordSchema, element: tuple[int, ...]) -> str:
    """Return the name that messages use for one number of the features."""
    if isinstance(schema.features, list):
        return f"[record] {schema.features[element[0]]}"
    return f"[record] {schema.features}" + "".join(f"[{at}]" for at in element)


def not_utf8(error: UnicodeDecodeError) -> str:
    """Return the error of a record that is not UTF-8."""
    return f"record: expected UTF-8, found byte 0x{error.object[error.start]:02x} at byte {error.start}"


def in_order(rejects: list[Reject]) -> list[Reject]:
    """Return rejects by their place."""
    return sorted(rejects, key=lambda reject: reject.index)
