"""What travels through a pipeline, and the protocols of the parts it travels through.

Records stay undecoded bytes inside chunks until a worker decodes a whole batch; nothing here is made per record but
rejects.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol, runtime_checkable

import msgspec
import numpy as np
import numpy.typing as npt

from streambatch.chunks import KEPT_OF_OVERSIZE as KEPT_OF_OVERSIZE
from streambatch.chunks import NO_ENDS
from streambatch.chunks import Chunk as Chunk
from streambatch.chunks import Fault as Fault
from streambatch.chunks import IntArray as IntArray
from streambatch.chunks import Partition as Partition
from streambatch.chunks import Reason as Reason
from streambatch.clock import Clock
from streambatch.events import Observer, Refusal

FloatArray = npt.NDArray[np.floating[Any]]
BoolArray = npt.NDArray[np.bool_]
RecordId = int | str
Trigger = Literal["size", "bytes", "time", "latency", "flush", "shutdown"]
Stage = Literal["frame", "decode", "validate", "preprocess", "score", "sink"]
TRIGGERS: tuple[Trigger, ...] = ("size", "bytes", "time", "latency", "flush", "shutdown")


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
    """What one scoring call sees: chunks in order, when the first of them came, why and when it closed.

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
        """Let go of the records' bytes: what waits for its ack holds counts and times, not records."""
        for chunk in self.chunks:
            chunk.payload, chunk.ends = b"", NO_ENDS

    def __repr__(self) -> str:
        return f"<Batch {self.sequence}: {self.count} records, {self.trigger}>"


class Reject(msgspec.Struct, frozen=True):
    """A record that failed: where in the batch and in its partition, at which stage, why, and its exact bytes."""

    index: int
    partition: Partition
    position: int
    stage: Stage
    reason: Reason
    error: str
    record: bytes
    id: RecordId | None = None
    truncated: bool = False


class Rows(msgspec.Struct, frozen=True):
    """Decoded records, by column.

    ids: one per row. x: (n, *shape) features. carry: one list of n values per carried field, in order.
    index: (n,) int64, each row's place in its batch; None when no record is missing.
    rejects: the records that are missing.
    """

    ids: Sequence[RecordId]
    x: FloatArray
    carry: Sequence[Sequence[Any]]
    index: IntArray | None
    rejects: Sequence[Reject]


class Outcome:
    """What a transform made of a batch: encoded scores, rejects, and how many rows a step filtered, per source.

    dead: rejects counted by source, stage and reason; it stays when the rejects are released.
    replies: for each chunk of the batch the lines to answer its records with; empty where nobody waits for an answer.
    index: the place in the batch of each record scored; None when all were. states: what steps with memory hold after
    the batch; None where there is no such step. retries: how many calls of the model were tried again.
    """

    __slots__ = ("dead", "filtered", "index", "payload", "rejects", "replies", "retries", "scored", "states")

    def __init__(
        self,
        payload: bytes,
        scored: Mapping[str, int],
        rejects: Sequence[Reject],
        filtered: Mapping[str, int],
        replies: Sequence[bytes] = (),
        index: IntArray | None = None,
        states: Any = None,
        retries: int = 0,
    ) -> None:
        self.payload, self.scored, self.rejects, self.filtered = payload, scored, rejects, filtered
        self.replies, self.index, self.states, self.retries = replies, index, states, retries
        self.dead: dict[tuple[str, Stage, Reason], int] = {}
        if rejects:
            self.dead = Counter((reject.partition.source, reject.stage, reject.reason) for reject in rejects)

    @property
    def size(self) -> int:
        """Bytes of the scores and of the replies."""
        return len(self.payload) + (sum(map(len, self.replies)) if self.replies else 0)

    def refuse(self, reject: Reject) -> None:
        """Take a record for dead that was scored."""
        source = reject.partition.source
        self.scored = {**self.scored, source: self.scored[source] - 1}
        self.rejects = [*self.rejects, reject]
        key = source, reject.stage, reject.reason
        self.dead[key] = self.dead.get(key, 0) + 1

    def release(self) -> None:
        """Let go of what was written; the counts stay."""
        self.payload, self.rejects, self.replies, self.index = b"", (), (), None


class Intake(Protocol):
    """What the pipeline gives a running source to push into."""

    @property
    def clock(self) -> Clock: ...

    @property
    def observer(self) -> Observer: ...

    @property
    def run_id(self) -> str: ...

    @property
    def memory(self) -> Memory: ...

    @property
    def has_room(self) -> bool:
        """Whether a record put now would not have to wait."""
        ...

    def refused(self, records: int, reason: Refusal) -> None:
        """Count records whose sender was told no; they were never received."""
        ...

    async def put(self, chunk: Chunk) -> None:
        """Take the chunk over. Its records count as received from the call on, and a graceful stop that cancels the
        caller while it waits for room loses none of them."""
        ...


@runtime_checkable
class CountingIntake(Intake, Protocol):
    """What a pipeline gives to who keeps records itself between their receipt and the inbox: `put` in parts."""

    def received(self, chunk: Chunk) -> None:
        """Count records as received and in flight."""
        ...

    def recovered(self, chunk: Chunk) -> None:
        """Count records as in flight again that were received before this run."""
        ...

    def lost(self, records: int) -> None:
        """Count records in flight as dropped: what held them is damaged."""
        ...

    async def enqueue(self, chunk: Chunk) -> None:
        """Take over a chunk whose records were counted."""
        ...


class Memory(Protocol):
    """The byte budget that every holder of record bytes draws on."""

    @property
    def capacity(self) -> int: ...

    async def reserve(self, size: int) -> None:
        """Wait until `size` bytes are free, then take them."""
        ...

    def take(self, size: int) -> None:
        """Take bytes that are already held, at once."""
        ...

    def give(self, size: int) -> None:
        """Give bytes back."""
        ...


class Framer(Protocol):
    """Finds record boundaries in the blocks of one partition. Pure: bytes and the time in, chunks out."""

    pending: int
    """Bytes held of a record that is not complete."""
    position: int
    """Where the last complete record ended."""

    def feed(self, block: bytes, now: float) -> list[Chunk]:
        """Return the records that `block` completes."""
        ...

    def end(self, now: float, *, cut_off: bool = False) -> list[Chunk]:
        """Return what the end of the partition completes: an unterminated last record, dead if it was cut off."""
        ...


class Framing(Protocol):
    """A way to tell records apart in bytes."""

    name: str

    def framer(
        self,
        partition: Partition,
        *,
        max_record_bytes: int,
        position: int = 0,
        columns: tuple[str, ...] | None = None,
        origin: object = None,
    ) -> Framer:
        """Return a framer that starts at `position`; past the start of a format with a header it needs `columns`."""
        ...

    def strip(self, raw: memoryview) -> bytes:
        """Return a record's own bytes, without what frames it."""
        ...


class Decoder(Protocol):
    """Turns the chunks of one source into rows; a record's own problem becomes a reject, never an exception."""

    def decode(self, chunks: Sequence[Chunk]) -> Rows:
        """Decode consecutive chunks; indexes in the result count from the first record of the first chunk."""
        ...


class Encoder(Protocol):
    """Turns scores into the bytes of an output format."""

    def header(self) -> bytes:
        """Return what a fresh output starts with."""
        ...

    def encode(self, ids: Sequence[RecordId], scores: FloatArray, carry: Sequence[Sequence[Any]]) -> bytes: ...


class Source(Protocol):
    """Where records come from. `name` is its label and the key of its state."""

    @property
    def name(self) -> str: ...

    @property
    def is_finite(self) -> bool:
        """Whether it ends by itself."""
        ...

    @property
    def format(self) -> str: ...

    async def run(self, intake: Intake) -> None:
        """Push chunks until the input ends or the task is cancelled; own and close every handle."""
        ...

    def acked(self, positions: Mapping[str, int]) -> None:
        """Learn that all records up to these positions, by partition name, are durable."""
        ...

    def revoke(self, partition: str) -> None:
        """Learn that a partition is no longer this source's to read."""
        ...


class Step(Protocol):
    """A preprocess step: (n, ...) to (n, ...), or to that and a mask (n,) of rows to keep."""

    def __call__(self, x: FloatArray, /) -> FloatArray | tuple[FloatArray, BoolArray]: ...


class Model(Protocol):
    """What scores. `score` may also be an async method."""

    def score(self, x: FloatArray, /) -> FloatArray:
        """Return one score per record: x (n, *shape) gives (n,) or (n, k)."""
        ...


class Sink(Protocol):
    """Where encoded scores go, in order."""

    @property
    def name(self) -> str: ...

    @property
    def format(self) -> str: ...

    async def open(self, header: bytes) -> None:
        """Acquire the output; `header` starts a fresh one. Raises SinkError or HeldError."""
        ...

    async def write(self, payload: bytes) -> None:
        """Write whole records; when it returns they are handed to the system."""
        ...

    async def sync(self) -> int:
        """Make all that was written durable. Returns the output's length in bytes."""
        ...

    async def close(self) -> None: ...


@runtime_checkable
class IdentifiedSink(Sink, Protocol):
    """A sink that tells the other side which batch it is given, so that one that comes twice can be known by its id."""

    async def write_batch(self, payload: bytes, batch_id: str) -> None:
        """Write the scores of one batch, as `write` does.

        batch_id: ASCII, the same whenever the batch is sent again.
        """
        ...


@runtime_checkable
class SegmentedSink(Sink, Protocol):
    """A sink that closes what it writes piece by piece, and whose scores may be durable only then."""

    @property
    def durable_writes(self) -> int:
        """How many of the writes since `open` were durable when `sync` or `finish` last returned."""
        ...

    def timed_by(self, clock: Clock) -> None:
        """Take the time from this clock; called before `open`."""
        ...

    async def close_due(self) -> None:
        """Close what is due; called by the task that writes, also when nothing was written for long."""
        ...

    async def sync(self) -> int:
        """Make durable what can be, without closing anything; a write may go on meanwhile."""
        ...

    async def finish(self) -> None:
        """Complete what is open, so that all that was written is durable: the input ended, or too much waits for it."""
        ...
