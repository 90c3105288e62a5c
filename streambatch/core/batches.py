"""Batches: the chunks of one call of the model, and when they passed each point of their way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

from streambatch.core.chunks import NO_ENDS, Chunk

Trigger = Literal["size", "bytes", "time", "flush", "shutdown"]
"""Why a batch closed: its window was full or over, the input ended, or the pipeline stops."""
TRIGGERS: tuple[Trigger, ...] = get_args(Trigger)


class Stamps:
    """When a batch passed each point of its way: monotonic seconds; a part of the latency is a difference of two.

    retry_seconds: how much of the time between `preprocessed` and `scored` went into calls of the model that failed in
    passing and into waiting before the next.
    """

    __slots__ = (
        "closed", "decoded", "durable", "encoded", "opened", "preprocessed", "retry_seconds", "scored", "sink_started",
        "started", "validated", "written",
    )  # fmt: skip

    def __init__(self, opened: float, closed: float) -> None:
        self.opened, self.closed = opened, closed
        self.started = self.decoded = self.validated = self.preprocessed = self.scored = self.encoded = closed
        self.sink_started = self.written = self.durable = closed
        self.retry_seconds = 0.0


class Batch:
    """The records of one scoring call: chunks in order, when the first of them came, why and when it closed.

    id: what an earlier run called the batch, if this is the same one cut again.
    """

    __slots__ = ("chunks", "count", "id", "sequence", "size", "stamps", "trigger")

    def __init__(
        self,
        sequence: int,
        chunks: Sequence[Chunk],
        count: int,
        size: int,
        trigger: Trigger,
        stamps: Stamps,
        id: str | None = None,
    ) -> None:
        self.sequence, self.chunks, self.count, self.size = sequence, chunks, count, size
        self.trigger, self.stamps, self.id = trigger, stamps, id

    def locate(self, index: int) -> tuple[Chunk, int]:
        """Return the chunk that holds record `index` of this batch, and the record's index there."""
        for chunk in self.chunks:
            if index < chunk.count:
                return chunk, index
            index -= chunk.count
        raise IndexError(f"batch {self.sequence} has no record {index + self.count}")

    def release(self) -> None:
        """Let go of the records' bytes."""
        # The batch itself stays until it is acked, for its counts and times.
        for chunk in self.chunks:
            chunk.payload, chunk.ends = b"", NO_ENDS

    def __repr__(self) -> str:
        return f"<Batch {self.sequence}: {self.count} records, {self.trigger}>"
