"""Chunks of table rows made by hand, and what a decoder makes of them."""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from streambatch.codecs.columns import values
from streambatch.codecs.formats import framing_for_format
from streambatch.codecs.rows import validate
from streambatch.codecs.table.arrow import ArrowCodec
from streambatch.codecs.table.chunk import TableChunk
from streambatch.core.chunks import Chunk, Partition
from streambatch.core.outcomes import Rows
from streambatch.core.schema import RecordSchema

PARTITION = Partition("in", "a")


def table_chunks(*batches: Any, partition: Partition = PARTITION) -> list[Chunk]:
    """Return a chunk for each record batch, one after the other."""
    chunks: list[Chunk] = []
    for batch in batches:
        base = chunks[-1].position if chunks else 0
        chunks.append(TableChunk(partition, batch, base, 1.5))
    return chunks


def batch_of(**columns: Any) -> Any:
    """Return a record batch."""
    return pa.record_batch(columns)


def decoded_table(schema: RecordSchema, *batches: Any) -> Rows:
    """Decode and validate what comes as one chunk for each batch."""
    return decoded_chunks(schema, table_chunks(*batches))


def decoded_chunks(schema: RecordSchema, chunks: Sequence[Chunk]) -> Rows:
    """Decode and validate, having checked what every decoder promises."""
    framing = framing_for_format("arrow")
    rows = ArrowCodec().decoder(schema, framing).decode(chunks)
    assert rows.x.shape == (len(rows.ids), *schema.feature_shape)
    assert rows.x.dtype == schema.numpy_dtype
    assert all(len(column) == len(rows.ids) for column in rows.carry)
    assert (rows.index is None) == (not rows.rejects)
    valid = validate(rows, chunks, schema, framing.strip)
    places = range(len(valid.ids)) if valid.index is None else valid.index.tolist()
    assert sorted([*places, *(reject.index for reject in valid.rejects)]) == list(range(sum(c.count for c in chunks)))
    return valid


def ids_of(rows: Rows) -> list[Any]:
    """Return ids as Python's own."""
    return list(values(rows.ids))


def faults_of(rows: Rows) -> dict[int, tuple[str, str]]:
    """Return reason and error of every reject, by place."""
    return {reject.index: (reject.reason, reject.error) for reject in rows.rejects}
