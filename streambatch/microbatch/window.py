"""The rule that says when the open batch closes. Pure: chunks and `now` in, a batch out.

A batch holds at most `max_records` records and `max_bytes` bytes (a lone larger record goes alone), is never empty,
and is due `max_wait` after its first record arrived.
"""

from collections.abc import Sequence
from math import inf
from typing import Annotated

from pydantic import Field

from streambatch.core.batches import Batch, Stamps, Trigger
from streambatch.core.chunks import Chunk
from streambatch.core.options import options
from streambatch.core.units import Duration, Size


@options
class BatchPolicy:
    """When a batch closes: at so many records, so many bytes, or so long after its first record arrived."""

    max_records: Annotated[int, Field(ge=1)] = 512
    """Records in a batch, at most."""
    max_bytes: Annotated[Size, Field(ge=1)] = 4 << 20
    """Bytes in a batch, at most; a lone larger record goes alone."""
    max_wait: Annotated[Duration, Field(ge=0)] = 0.05
    """Time from the arrival of a batch's first record to its closing, at most, while a worker can take it."""


class Window:
    """The open batch. next_sequence: the number of the batch that is closed first."""

    def __init__(self, policy: BatchPolicy, next_sequence: int = 0) -> None:
        self.policy = policy
        self.deadline = inf
        self._sequence = next_sequence
        self._reset()

    @property
    def next_sequence(self) -> int:
        """The number of the batch that is closed next."""
        return self._sequence

    @property
    def is_empty(self) -> bool:
        return not self._chunks

    @property
    def records_left(self) -> int:
        return self.policy.max_records - self._count

    @property
    def bytes_left(self) -> int:
        return self.policy.max_bytes - self._size

    def add(self, chunk: Chunk, now: float) -> None:
        """Join a chunk that fits: at most `records_left` records and `bytes_left` bytes, or one record alone."""
        if not self._chunks:
            self._opened = now
        chunk.taken_at = now
        self._chunks.append(chunk)
        self._count += chunk.count
        self._size += chunk.size
        # The minimum, since chunks of several sources don't come in the order of their arrival.
        self.deadline = min(self.deadline, chunk.arrived_at + self.policy.max_wait)

    def replace(self, policy: BatchPolicy) -> None:
        """Close batches by another policy; an open one that holds more than that allows closes as it is."""
        # The deadline of records that wait already moves with the policy.
        self.policy = policy
        if self._chunks:
            self.deadline = min(chunk.arrived_at for chunk in self._chunks) + policy.max_wait

    def overflow(self) -> None:
        """Take note that the next record does not fit in by its bytes."""
        self._is_overfull = True

    def due(self, now: float) -> Trigger | None:
        """Return why the batch has to close now, or None while it may stay open."""
        if self._count >= self.policy.max_records:
            return "size"
        if self._is_overfull or self._size >= self.policy.max_bytes:
            return "bytes"
        if now >= self.deadline:
            return "time"
        return None

    def close(self, trigger: Trigger, now: float) -> Batch:
        """Return the batch and open the next. Raises ValueError when it is empty."""
        if not self._chunks:
            raise ValueError("an empty batch is never emitted")
        batch = self._batch(self._chunks, self._count, self._size, trigger, Stamps(self._opened, now))
        self._reset()
        return batch

    def planned(self, chunks: Sequence[Chunk], trigger: Trigger, id: str | None, now: float) -> Batch:
        """Return a batch of chunks that were put together elsewhere, whatever their size; the open batch stays."""
        count, size = sum(chunk.count for chunk in chunks), sum(chunk.size for chunk in chunks)
        stamps = Stamps(min(chunk.taken_at for chunk in chunks), now)
        # From the same sequence as all other batches: the output is written in its order.
        return self._batch(chunks, count, size, trigger, stamps, id)

    def _batch(
        self, chunks: Sequence[Chunk], count: int, size: int, trigger: Trigger, stamps: Stamps, id: str | None = None
    ) -> Batch:
        batch = Batch(self._sequence, chunks, count, size, trigger, stamps, id)
        self._sequence += 1
        return batch

    def _reset(self) -> None:
        self._chunks: list[Chunk] = []
        self._count = self._size = 0
        # No deadline while the window is empty: time counts from a batch's first record, never from the last batch.
        self._opened = self.deadline = inf
        self._is_overfull = False
