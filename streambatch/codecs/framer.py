"""The common part of all framers: their position in the partition, and how they make chunks.

Invariant: the chunks of a framer, in the order it hands them out, hold every record of its partition once, in order;
`position` is where the last of them ended. The payload of a chunk with a fault is the record's own bytes, unframed.
"""

from __future__ import annotations

import numpy as np

from streambatch.core.chunks import KEPT_OF_OVERSIZE, Chunk, Fault
from streambatch.core.codec import FramerStart
from streambatch.core.types import IntArray
from streambatch.core.units import format_size


class PartitionFramer:
    """The part of a framer that doesn't depend on how records are separated."""

    def __init__(self, start: FramerStart) -> None:
        self.partition, self.origin, self.columns = start.partition, start.origin, start.columns
        self.max_record_bytes = start.max_record_bytes
        self.position = start.position
        self.pending = 0

    def _chunk(self, payload: bytes, ends: IntArray, base: int, now: float) -> Chunk:
        """Return the records of `payload`, whose first byte is at `base`."""
        chunk = Chunk(self.partition, payload, ends, base, now, columns=self.columns, origin=self.origin)
        self.position = chunk.position
        return chunk

    def _dead(self, record: bytes, position: int, fault: Fault, now: float) -> Chunk:
        """Return the one record that ends at `position` and died of `fault`."""
        self.position = position
        ends = np.array([len(record)], np.int64)
        base = position - len(record)
        return Chunk(self.partition, record, ends, base, now, columns=self.columns, origin=self.origin, fault=fault)

    def _oversize(self, head: bytes, size: int, position: int, now: float, *, received: int | None = None) -> Chunk:
        """Return the record of `size` bytes that begins with `head` and ends at `position`.

        received: how many of its bytes came, if not all.
        """
        allowed, found = format_size(self.max_record_bytes), format_size(size)
        # Rounded, the two may look alike: "at most 1 MiB, found 1 MiB" would say nothing.
        if allowed == found:
            allowed, found = f"{self.max_record_bytes} B", f"{size} B"
        kept = head[:KEPT_OF_OVERSIZE]
        is_cut = len(kept) < (size if received is None else received)
        error = f"max_record_bytes: expected at most {allowed}, found {found}"
        return self._dead(kept, position, Fault("oversize", error, truncated=is_cut), now)
