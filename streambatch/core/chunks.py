"""Undecoded records on their way: a run of them from one partition, as it was read.

A record ends at `ends[i]` of its chunk's payload and starts where the one before it ends, so that a chunk is split by
moving two indexes and its payload is copied at most once, when the chunks of a batch are joined.
"""

from __future__ import annotations

from hashlib import sha256
from typing import Any, Literal

import msgspec
import numpy as np

from streambatch.core.types import IntArray

Reason = Literal[
    "oversize", "cut_off", "invalid_json", "invalid_csv", "invalid_encoding", "missing_field", "wrong_type",
    "wrong_shape", "not_finite", "non_finite_score", "step_error", "model_error", "sink_refused",
]  # fmt: skip

NO_ENDS: IntArray = np.empty(0, np.int64)
KEPT_OF_OVERSIZE = 64 << 10
"""Bytes kept of a record over its source's `max_record_bytes`."""


class Partition(msgspec.Struct, frozen=True):
    """One file, connection or request of one source. A position counts within it."""

    source: str
    name: str

    def __str__(self) -> str:
        return f"{self.source} {self.name}"


class Fault(msgspec.Struct, frozen=True):
    """Why a record died while it was framed."""

    reason: Reason
    error: str
    truncated: bool = False


class Chunk:
    """Consecutive undecoded records of one partition, as read.

    payload: the bytes as read, records from `first` to `last` of `ends`; shared between the chunks of a split.
    ends: (m,) int64, where each record ends in `payload`, its line ending included; its start is the end before it.
    start, end: where the first of its records starts in `payload`, and the last ends.
    base: what to add to an end to get a position.
    columns: the header of a CSV partition. origin: opaque, for replies; never leaves this process.
    fault: set for a chunk of one record that died while it was framed.
    memo: what codecs keep about the whole payload for the other chunks that share it, by keys of their own.
    arrived_at, entered_at, taken_at: monotonic seconds when it was read, entered the inbox, joined a batch.
    """

    __slots__ = (
        "arrived_at", "base", "columns", "end", "ends", "entered_at", "fault", "first", "last", "memo", "origin",
        "partition", "payload", "start", "taken_at",
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
        self.start, self.end = 0, int(ends[-1]) if len(ends) else 0
        self.arrived_at = self.entered_at = self.taken_at = arrived_at
        self.columns, self.origin, self.fault = columns, origin, fault
        self.memo: dict[str, Any] = {}

    @property
    def count(self) -> int:
        return self.last - self.first

    @property
    def size(self) -> int:
        """Bytes of the records, framing included."""
        return self.end - self.start

    @property
    def position(self) -> int:
        """Where the last record ends in its partition: reading resumes there."""
        return self.base + self.end

    @property
    def begins_at(self) -> int:
        """Where the first record begins in its partition."""
        return self.base + self.start

    def digest(self) -> Any:
        """Return a running SHA-256 for the `digestible` part of this and other chunks of the partition."""
        return sha256()

    def digestible(self) -> Any:
        """Return what a digest takes of the records: the same however they were cut into chunks."""
        return self.cut(*self.digest_span())

    def digest_span(self) -> tuple[Any, int, int]:
        """Return a payload and where in it that lies which a digest takes, for `cut`.

        Chunks that follow each other in one payload are hashed at once: their spans adjoin.
        """
        return self.payload, self.start, self.end

    def id_of(self, index: int) -> str:
        """Return what record `index` is called if it has no id: `<partition>:<position>`."""
        return f"{self.partition.name}:{self.position_of(index)}"

    def ids(self) -> list[str]:
        """Return what the records are called if they have no id."""
        prefix = f"{self.partition.name}:"
        return [f"{prefix}{position}" for position in (self.ends[self.first : self.last] + self.base).tolist()]

    @staticmethod
    def cut(payload: Any, start: int, end: int) -> Any:
        """Return a part of a payload, without copying it."""
        return memoryview(payload)[start:end]

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
        # Mostly all of them fit, which one comparison shows.
        if int(self.ends[self.first + count - 1]) - self.start <= size:
            return count
        # To the right: a record that ends just at the limit still fits.
        return int(np.searchsorted(self.ends[self.first : self.last], self.start + size, side="right"))

    def split_off(self, count: int) -> Chunk:
        """Take the first `count` records out of this chunk and return them; both share payload and ends."""
        if not 0 < count < self.last - self.first:
            raise ValueError(f"a chunk of {self.count} records can't be split after {count}")
        head = self._again()
        # Shared: what a codec found out about the payload holds for both parts.
        head.memo = self.memo
        head.entered_at, head.taken_at = self.entered_at, self.taken_at
        head.first, head.start = self.first, self.start
        head.last = self.first = self.first + count
        # The chunks of a table have no ends: they count in rows.
        if len(self.ends):
            head.end = self.start = int(self.ends[self.first - 1])
        return head

    def _again(self) -> Chunk:
        """Return a chunk of all that this one's payload holds."""
        return type(self)(
            self.partition,
            self.payload,
            self.ends,
            self.base,
            self.arrived_at,
            columns=self.columns,
            origin=self.origin,
            fault=self.fault,
        )

    def __repr__(self) -> str:
        return f"<Chunk {self.partition} {self.count} records to {self.position}>"
