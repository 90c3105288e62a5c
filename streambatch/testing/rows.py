"""Rows of id and score, which the suite for sinks writes and reads back from outputs of any format."""

from __future__ import annotations

import io
from collections.abc import Sequence

import msgspec
import numpy as np

from streambatch.core.codec import Encoder
from streambatch.core.schema import RecordSchema
from streambatch.scoring.factory import encoder_for

Row = tuple[int, float]
"""Id and score of a record."""


def encoder_of_rows(output_format: str) -> Encoder:
    """Return the encoder that a pipeline uses for a sink of this format."""
    return encoder_for(output_format, RecordSchema(id="id", features="x", shape=(1,)))


def encoded(encoder: Encoder, rows: Sequence[Row]) -> bytes:
    """Return rows as one payload."""
    return encoder.encode([row[0] for row in rows], np.array([row[1] for row in rows]), [])


def rows_in(output: bytes, output_format: str) -> list[Row]:
    """Return the rows of a whole output: jsonl, csv with one header, an Arrow stream, or Parquet.

    Raises an exception if it is not a valid output, such as one with two headers.
    """
    if output_format == "jsonl":
        return [(line["id"], line["score"]) for line in map(msgspec.json.decode, output.splitlines())]
    if output_format == "csv":
        header, *lines = output.decode().splitlines()
        assert header == "id,score", f"expected the header id,score; found {header!r}"
        return [(int(number), float(score)) for number, score in (line.split(",") for line in lines)]
    return _rows_of_table(output, output_format) if output else []


def check_same(rows: Sequence[Row], expected: Sequence[Row]) -> None:
    """Check that an output holds the written rows, in order."""
    if rows == list(expected):
        return
    place = next((at for at, (a, b) in enumerate(zip(rows, expected, strict=False)) if a != b), None)
    at = min(len(rows), len(expected)) if place is None else place
    raise AssertionError(
        f"{len(rows)} rows in the output, {len(expected)} were written; they differ from row {at} on: "
        f"found {rows[at : at + 2]}, expected {list(expected)[at : at + 2]}"
    )


def _rows_of_table(output: bytes, output_format: str) -> list[Row]:
    # Imported here: a sink of lines is tested without pyarrow.
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(io.BytesIO(output)) if output_format == "parquet" else pa.ipc.open_stream(output).read_all()
    return list(zip(table["id"].to_pylist(), table["score"].to_pylist(), strict=True))
