"""What a pipeline gives a running source to push into."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from streambatch.core.chunks import Chunk
from streambatch.core.clock import Clock
from streambatch.core.events import Observer, Refusal


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
