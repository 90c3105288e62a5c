"""What travels through a pipeline, and the protocols of the parts it travels through.

Records stay undecoded bytes inside chunks until a worker decodes a whole batch; nothing here is made per record but
rejects. A record ends at `ends[i]` of its chunk's payload and starts where the one before it ends, so that a chunk is
split by moving two indexes and its payload is copied at most once, when the chunks of a batch are joined.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

import msgspec
import numpy as np
import numpy.typing as npt

from streambatch.clock import Clock
from streambatch.events import Observer

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.floating[Any]]
BoolArray = npt.NDArray[np.bool_]
RecordId = int | str
Trigger = Literal["size", "bytes", "time", "latency", "flush", "shutdown"]
Stage = Literal["frame", "decode", "validate", "preprocess", "score", "sink"]
Reason = Literal[
    "oversize", "cut_off", "invalid_json", "invalid_csv", "invalid_encoding", "missing_field", "wrong_type",
    "wrong_shape", "not_finite", "non_finite_score", "step_error", "model_error", "sink_refused",
]  # fmt: skip
TRIGGERS: tuple[Trigger, ...] = ("size", "bytes", "time", "latency", "flush", "shutdown")

_NO_ENDS: IntArray = np.empty(0, np.int64)

KEPT_OF_OVERSIZE = 64 << 10
"""Bytes kept of a record over its source's `max_record_bytes`."""


class Partition(msgspec.Struct, frozen=True):
    """What a position counts in: one file or connection of one source."""

    source: str
    name: str

    def __str__(self) -> str:
        return f"{self.source}/{self.name}"


class Fault(msgspec.Struct, frozen=True):
    """Why a record died while it was framed."""

    reason: Reason
    error: str
    truncated: bool = False


class Chunk:
    """Consecutive undecoded records of one partition, as read.

    payload: the bytes as read, records from `first` to `last` of `ends`; shared between the chunks of a split.
    ends: (m,) int64, where each record ends in `payload`, its line ending included; its start is the end before it.
    base: what to add to an end to get a position.
    columns: the header of a CSV partition. origin: opaque, for replies; never leaves this process.
    fault: set for a chunk of one record that died while it was framed.
    arrived_at, entered_at, taken_at: monotonic seconds when it was read, entered the inbox, joined a batch.
    """

    __slots__ = (
        "arrived_at", "base", "columns", "ends", "entered_at", "fault", "first", "last", "origin", "partition",
        "payload", "taken_at",
    )  # fmt: skip

    def __init__(
        self,
        partition: Partition,
        payload: bytes,
        ends: IntArray,
        base: int,
        arrived_at: float,
        *,
        columns: tuple[str, ...] | None = None,
        origin: object = None,
        fault: Fault | None = None,
    ) -> None:
        self.partition, self.payload, self.ends, self.base = partition, payload, ends, base
        self.first, self.last = 0, len(ends)
        self.arrived_at = self.entered_at = self.taken_at = arrived_at
        self.columns, self.origin, self.fault = columns, origin, fault

    @property
    def count(self) -> int:
        return self.last - self.first

    @property
    def start(self) -> int:
        """Where the first record starts in `payload`."""
        return int(self.ends[self.first - 1]) if self.first else 0

    @property
    def end(self) -> int:
        """Where the last record ends in `payload`."""
        return int(self.ends[self.last - 1])

    @property
    def size(self) -> int:
        """Bytes of the records, framing included."""
        return self.end - self.start

    @property
    def position(self) -> int:
        """Where the last record ends in its partition: reading resumes there."""
        return self.base + self.end

    def data(self) -> memoryview | bytes:
        """Return the records' bytes, framing included, without copying them."""
        if self.first == 0 and self.end == len(self.payload):
            return self.payload
        return memoryview(self.payload)[self.start : self.end]

    def raw(self, index: int) -> memoryview:
        """Return record `index` of this chunk with its framing."""
        at = self.first + index
        start = int(self.ends[at - 1]) if at else 0
        return memoryview(self.payload)[start : int(self.ends[at])]

    def position_of(self, index: int) -> int:
        """Return where record `index` ends in its partition."""
        return self.base + int(self.ends[self.first + index])

    def fitting(self, records: int, size: int) -> int:
        """Return how many of the first records fit into that many records and bytes."""
        if records <= 0:
            return 0
        count = min(records, self.last - self.first)
        if int(self.ends[self.first + count - 1]) - self.start <= size:
            return count
        return int(np.searchsorted(self.ends[self.first : self.last], self.start + size, side="right"))

    def split_off(self, count: int) -> Chunk:
        """Take the first `count` records out of this chunk and return them; both share payload and ends."""
        if not 0 < count < self.last - self.first:
            raise ValueError(f"a chunk of {self.count} records can't be split after {count}")
        head = Chunk(
            self.partition,
            self.payload,
            self.ends,
            self.base,
            self.arrived_at,
            columns=self.columns,
            origin=self.origin,
            fault=self.fault,
        )
        head.entered_at, head.taken_at = self.entered_at, self.taken_at
        head.first = self.first
        head.last = self.first = self.first + count
        return head

    def __repr__(self) -> str:
        return f"<Chunk {self.partition} {self.count} records to {self.position}>"


class Stamps:
    """When a batch passed each point of its way: monotonic seconds; a part of the latency is a difference of two."""

    __slots__ = (
        "closed", "decoded", "durable", "encoded", "opened", "preprocessed", "scored", "sink_started", "started",
        "validated", "written",
    )  # fmt: skip

    def __init__(self, opened: float, closed: float) -> None:
        self.opened, self.closed = opened, closed
        self.started = self.decoded = self.validated = self.preprocessed = self.scored = self.encoded = closed
        self.sink_started = self.written = self.durable = closed


class Batch:
    """What one scoring call sees: chunks in order, when the first of them came, why and when it closed."""

    __slots__ = ("chunks", "count", "sequence", "size", "stamps", "trigger")

    def __init__(
        self, sequence: int, chunks: Sequence[Chunk], count: int, size: int, trigger: Trigger, stamps: Stamps
    ) -> None:
        self.sequence, self.chunks, self.count, self.size = sequence, chunks, count, size
        self.trigger, self.stamps = trigger, stamps

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
            chunk.payload, chunk.ends = b"", _NO_ENDS

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
    """

    __slots__ = ("dead", "filtered", "payload", "rejects", "scored")

    def __init__(
        self, payload: bytes, scored: Mapping[str, int], rejects: Sequence[Reject], filtered: Mapping[str, int]
    ) -> None:
        self.payload, self.scored, self.rejects, self.filtered = payload, scored, rejects, filtered
        self.dead = Counter((reject.partition.source, reject.stage, reject.reason) for reject in rejects)

    def release(self) -> None:
        """Let go of what was written; the counts stay."""
        self.payload, self.rejects = b"", ()


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

    async def put(self, chunk: Chunk) -> None:
        """Take the chunk over. Its records count as received from the call on, and a graceful stop that cancels the
        caller while it waits for room loses none of them."""
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
