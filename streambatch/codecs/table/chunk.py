"""Chunks of formats whose records are rows of a table, and the framing of what needs none.

A position in a table is a row number. Such a chunk holds a slice of a record batch that came as a whole, and its size
is its rows' share of the batch's bytes, so that the sizes of its parts add up to its own.
"""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np

from streambatch.codecs.framer import PartitionFramer
from streambatch.core.chunks import NO_ENDS, Chunk, Partition
from streambatch.core.codec import Framer, FramerStart, Framing

_ENCODE = msgspec.json.Encoder(enc_hook=str).encode


class TableChunk(Chunk):
    """Consecutive rows of one partition: `payload` is a `pyarrow.RecordBatch`, whose first row is number `base`.

    size: what the whole of it counts as in bytes, if that is known already.
    """

    __slots__ = ("_bytes", "_rows")

    def __init__(
        self,
        partition: Partition,
        payload: Any,
        base: int,
        arrived_at: float,
        *,
        size: int | None = None,
        origin: object = None,
    ) -> None:
        super().__init__(partition, payload, NO_ENDS, base, arrived_at, origin=origin)
        self._rows = int(payload.num_rows)
        self.last = self._rows
        self._bytes: int = size or size_of(payload)

    @property
    def size(self) -> int:
        """The rows' share of the bytes of the batch they came in."""
        return self._bytes_to(self.last) - self._bytes_to(self.first)

    @property
    def position(self) -> int:
        """The number of the row after the last one: reading resumes there."""
        return self.base + self.last

    @property
    def begins_at(self) -> int:
        """The number of the first row."""
        return self.base + self.first

    def digest(self) -> Any:
        """Return a running digest of rows; how they are cut into chunks makes no difference to it."""
        from streambatch.codecs.table.digest import TableDigest

        return TableDigest()

    def digest_span(self) -> tuple[Any, int, int]:
        """Return the record batch and which of its rows they are."""
        return self.payload, self.first, self.last

    @staticmethod
    def cut(payload: Any, start: int, end: int) -> Any:
        """Return rows of a record batch, without copying them."""
        return payload.slice(start, end - start)

    def data(self) -> Any:
        """Return the rows as a record batch, without copying them."""
        return self.payload.slice(self.first, self.count)  # type: ignore[attr-defined]  # a record batch

    def raw(self, index: int) -> memoryview:
        """Return row `index` of this chunk as a JSON object."""
        from streambatch.codecs.plain import plain_row

        row = self.payload.slice(self.first + index, 1)  # type: ignore[attr-defined]  # a record batch
        return memoryview(_ENCODE(plain_row(row)))

    def position_of(self, index: int) -> int:
        """Return the number of the row after row `index` of this chunk."""
        return self.base + self.first + index + 1

    def fitting(self, records: int, size: int) -> int:
        """Return how many of the first rows fit into that many records and bytes."""
        if records <= 0 or size < 0:
            return 0
        # The largest `last` whose bytes stay within. `_bytes_to` rounds down: it is at most n as long as _bytes * last
        # is less than (n + 1) * _rows.
        last = ((self._bytes_to(self.first) + size + 1) * self._rows - 1) // self._bytes
        return min(records, self.count, last - self.first)

    def _again(self) -> TableChunk:
        return TableChunk(
            self.partition, self.payload, self.base, self.arrived_at, size=self._bytes, origin=self.origin
        )

    def _bytes_to(self, row: int) -> int:
        # Whole numbers from the start of the batch: however it is split, the sizes of the parts add up to all bytes.
        return self._bytes * row // self._rows


class NoneFraming(Framing):
    """Every block is one record, as a datagram is; rows of a table come as chunks already."""

    name = "none"

    def framer_from(self, start: FramerStart) -> Framer:
        return BlockFramer(start)

    def strip(self, raw: memoryview) -> bytes:
        """Return a record as it is: nothing frames it."""
        return bytes(raw)


class BlockFramer(PartitionFramer):
    """Makes a record of each block; see `Framer`. An empty block is none."""

    def feed(self, block: bytes, now: float) -> list[Chunk]:
        """Return the one record."""
        if not block:
            return []
        end = self.position + len(block)
        if len(block) > self.max_record_bytes:
            return [self._oversize(block, len(block), end, now)]
        return [self._chunk(block, np.array([len(block)], np.int64), self.position, now)]

    def end(self, now: float, *, cut_off: bool = False) -> list[Chunk]:
        """Return nothing: no block waits for another."""
        return []


def size_of(batch: Any) -> int:
    """Return what the rows of a record batch count as in bytes: at least one each."""
    return max(int(batch.nbytes), int(batch.num_rows))
