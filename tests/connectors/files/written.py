"""Reads scores back from what a file sink wrote, with tools that are not streambatch's."""

import csv
import gzip
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import ipc

from streambatch.codecs.containers import Compression
from streambatch.codecs.formats import OutputFormat
from streambatch.core.codec import Encoder
from streambatch.core.schema import RecordSchema
from streambatch.scoring.factory import encoder_for

FORMATS: list[tuple[OutputFormat, Compression]] = [
    ("jsonl", "none"),
    ("jsonl", "gzip"),
    ("jsonl", "zstd"),
    ("csv", "none"),
    ("csv", "gzip"),
    ("csv", "zstd"),
    ("arrow", "none"),
    ("arrow", "zstd"),
    ("parquet", "none"),
    ("parquet", "gzip"),
    ("parquet", "zstd"),
]


def payload_of(encoder: Encoder, first: int, count: int) -> bytes:
    """Return `count` scores, whose ids go on from `first`."""
    ids = list(range(first, first + count))
    return encoder.encode(ids, np.sqrt(np.array(ids, np.float32)), [])


def encoder(format: OutputFormat) -> Encoder:
    return encoder_for(format, RecordSchema(features="x", shape=(1,)))


def rows_in(paths: Sequence[Path], format: OutputFormat) -> list[tuple[int, float]]:
    """Return id and score of all rows, files in the order given."""
    return [(int(row["id"]), float(row["score"])) for path in paths for row in read(path, format)]


def read(path: Path, format: OutputFormat) -> list[dict[str, Any]]:
    """Return the rows of a file."""
    data = path.read_bytes()
    if format == "parquet":
        rows: list[dict[str, Any]] = pq.read_table(io.BytesIO(data)).to_pylist()
        return rows
    if format == "arrow":
        rows = ipc.open_stream(data).read_all().to_pylist() if data else []
        return rows
    text = unpacked(data)
    if format == "jsonl":
        return [json.loads(line) for line in text.splitlines()]
    return list(csv.DictReader(io.StringIO(text.decode())))


def unpacked(data: bytes) -> bytes:
    """Return text that may be compressed, in any number of members or frames."""
    if data.startswith(b"\x1f\x8b"):
        return gzip.decompress(data)
    if data.startswith(b"\x28\xb5\x2f\xfd"):
        with pa.CompressedInputStream(pa.BufferReader(data), "zstd") as stream:
            unzipped: bytes = stream.read()
            return unzipped
    return data


def closed_in(folder: Path) -> list[Path]:
    """Return the closed segments of a folder, in order, and make sure that no number is missing."""
    paths = sorted(path for path in folder.iterdir() if not path.name.endswith(".open"))
    numbers = [int(path.name.partition("-")[2][:8]) for path in paths]
    assert numbers == list(range(1, len(paths) + 1))
    return paths
