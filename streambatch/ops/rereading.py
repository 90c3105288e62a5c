"""Takes the records of a partition again, from the first to the last position that a run read.

Records are read on demand, so that partitions can be read side by side in any order. Blocking.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from typing import Any

from streambatch.codecs.compression import Corrupt
from streambatch.core.archive import ArchivedPartition
from streambatch.core.chunks import Chunk


class PartitionReader:
    """The records of a partition between two positions, taken in order."""

    def __init__(self, chunks: Iterator[Chunk]) -> None:
        self._chunks = chunks
        self._next: Chunk | None = None
        self._digest: Any = None
        self.problem: str | None = None
        """Why the partition can't be read to the end, if it can't."""

    @property
    def digest(self) -> str | None:
        """The digest of all records taken so far, as a run records it; None before the first."""
        return self._digest.hexdigest() if self._digest is not None else None

    def take(self, start: int, end: int) -> list[Chunk]:
        """Return the records that end after `start`, none later than `end`."""
        self._take(start)
        return self._take(end)

    def finish(self, last: int) -> None:
        """Take the records that are left, so that the digest covers them."""
        self._take(last)

    def _take(self, end: int) -> list[Chunk]:
        taken = []
        while (chunk := self._peek()) is not None:
            count = bisect_right(range(chunk.count), end, key=chunk.position_of)
            if count == 0:
                break
            if count < chunk.count:
                taken.append(chunk.split_off(count))
                break
            taken.append(chunk)
            self._next = None
        return taken

    def _peek(self) -> Chunk | None:
        if self._next is None and self.problem is None:
            try:
                self._next = next(self._chunks, None)
            except (OSError, Corrupt, ValueError) as error:
                self.problem = str(error)
            if self._next is not None:
                if self._digest is None:
                    self._digest = self._next.digest()
                self._digest.update(self._next.digestible())
        return self._next


def gap_is_empty(partition: ArchivedPartition, start: int, end: int) -> bool:
    """Whether no record lies between two positions, but only blank lines, say."""
    reading = PartitionReader(partition.chunks(start, end))
    return not reading.take(start, end) and reading.problem is None
