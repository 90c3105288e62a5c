"""Records to rows, as plain values that can be compared."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from msgspec import UNSET, Raw

from streambatch.codecs.csv.codec import CsvCodec
from streambatch.codecs.formats import framing
from streambatch.codecs.rows import validate
from streambatch.codecs.text.json import JsonCodec
from streambatch.core.chunks import Chunk
from streambatch.core.outcomes import Reject, Rows
from streambatch.core.schema import RecordSchema
from tests.codecs.framed import chunks_in

CODECS: dict[str, Any] = {"json": JsonCodec(), "csv": CsvCodec()}


class Told(NamedTuple):
    """What became of records: the rows by place, and the rejects without their partition."""

    rows: dict[int, tuple[Any, ...]]
    rejects: dict[int, tuple[str, str, str, bytes, int, Any]]


def decoded(schema: RecordSchema, chunks: Sequence[Chunk], *, codec: str = "json", framed: str = "lines") -> Rows:
    """Decode and validate."""
    framing_of = framing(framed)
    rows = CODECS[codec].decoder(schema, framing_of).decode(chunks)
    assert rows.x.shape == (len(rows.ids), *schema.feature_shape)
    assert rows.x.dtype == schema.numpy_dtype
    assert (rows.index is None) == (not rows.rejects)
    valid = validate(rows, chunks, schema, framing_of.strip)
    places = range(len(valid.ids)) if valid.index is None else valid.index.tolist()
    assert sorted([*places, *(reject.index for reject in valid.rejects)]) == list(range(sum(c.count for c in chunks)))
    return valid


def told(rows: Rows) -> Told:
    """Return rows and rejects in a form that compares."""
    places = range(len(rows.ids)) if rows.index is None else rows.index.tolist()
    columns = [rows.ids, rows.x.tolist(), *rows.carry]
    values = zip(*columns, strict=True)
    return Told(
        {place: tuple(map(_plain, row)) for place, row in zip(places, values, strict=True)},
        {r.index: (r.stage, r.reason, r.error, r.record, r.position, r.id) for r in rows.rejects},
    )


def lines_decoded(schema: RecordSchema, *lines: bytes) -> Rows:
    """Decode lines that come as one chunk."""
    return decoded(schema, chunks_in("lines", [b"".join(line + b"\n" for line in lines)]))


def only_reject(rows: Rows) -> Reject:
    """Return the reject of the one record that there was."""
    (reject,) = rows.rejects
    assert len(rows.ids) == 0
    return reject


def framed_bodies(bodies: Iterable[bytes]) -> bytes:
    """Return bodies, each after its length."""
    return b"".join(len(body).to_bytes(4, "big") + body for body in bodies)


def _plain(value: Any) -> Any:
    if isinstance(value, Raw):
        return bytes(value)
    if isinstance(value, list):
        return tuple(map(_plain, value))
    if value is UNSET:
        return "absent"
    return "nan" if isinstance(value, float) and np.isnan(value) else value
