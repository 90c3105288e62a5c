"""The parts that records travel through, as they were told apart so far: see `parts`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from streambatch.core.backlog import Backlog
from streambatch.core.checkpoints import CommitMark, OutputMark, PartitionNotes, SavedPartition
from streambatch.core.clock import Clock
from streambatch.core.intake import Intake
from streambatch.core.types import BoolArray, FloatArray


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


@runtime_checkable
class ResumableSource(Protocol):
    """A source whose records can be read again from a position."""

    def resume(self, saved: Mapping[str, SavedPartition]) -> None:
        """Learn, before `run`, how far each partition was acked; those not named are new."""
        ...

    def notes(self) -> Mapping[str, PartitionNotes | None]:
        """Return the notes of partitions that are new or changed since the last call.

        None is for a partition that is over: it may be forgotten once all its records are acked.
        """
        ...


@runtime_checkable
class RewindableOutput(Protocol):
    """An output that can be taken back to a mark."""

    def restore(self, mark: OutputMark | None, commit: CommitMark) -> None:
        """Learn, before `open`, what the last checkpoint says of this output: None if there is none.

        `open` takes the output back to `mark`. It awaits `commit` before it first changes anything, and again before a
        closed segment gets its name.
        """
        ...

    def mark(self) -> OutputMark:
        """Return how far the output goes with all that was written until now."""
        ...


@runtime_checkable
class CountableSource(Protocol):
    """A source that can say what it has before it."""

    def backlog(self) -> Backlog:
        """Return it, as of the last look; call it on the event loop, at any time."""
        ...


@runtime_checkable
class StatefulStep(Protocol):
    """A preprocess step with memory: (state, x) -> (state, y), called in the order of records."""

    @property
    def is_stateful(self) -> bool: ...

    def initial_state(self) -> Any:
        """Return the state before the first record."""
        ...

    def __call__(self, state: Any, x: FloatArray, /) -> tuple[Any, FloatArray]:
        """Return a new state and rows; `state` stays as it is."""
        ...

    def dump(self, state: Any, /) -> bytes:
        """Return a state as bytes that any later version can load, on any machine."""
        ...

    def load(self, data: bytes, /) -> Any:
        """Return the state that was dumped, bit for bit. Raises an error that says why when it doesn't fit."""
        ...
