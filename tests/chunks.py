"""Chunks made by hand for tests: lines of known length, from a partition of choice."""

from collections.abc import Sequence

import numpy as np

from streambatch.core.chunks import Chunk, Partition

PARTITION = Partition("in", "a")


def chunk_of(
    lines: Sequence[bytes], *, partition: Partition = PARTITION, base: int = 0, arrived_at: float = 0.0
) -> Chunk:
    """Return a chunk whose records are `lines`, each ended by a newline."""
    payload = b"".join(line + b"\n" for line in lines)
    ends = np.cumsum([len(line) + 1 for line in lines])
    return Chunk(partition, payload, ends, base, arrived_at)


def lines_of(chunks: Sequence[Chunk]) -> list[bytes]:
    """Return the records of chunks, without their newlines."""
    return [bytes(chunk.raw(i)).rstrip(b"\n") for chunk in chunks for i in range(chunk.count)]
