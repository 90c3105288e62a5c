"""The interface that a running source pushes records into."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Protocol

from streambatch.core.chunks import Chunk
from streambatch.core.clock import Clock
from streambatch.core.events import Observer, Refusal


class MemoryBudget(Protocol):
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


class Receiver(Protocol):
    """Takes the chunks of one partition: the intake itself, or a request that is stored whole."""

    @property
    def clock(self) -> Clock: ...

    @property
    def observer(self) -> Observer: ...

    @property
    def memory(self) -> MemoryBudget: ...

    async def put(self, chunk: Chunk) -> None:
        """Take the chunk over; see `Intake.put`."""
        ...


class Intake(ABC):
    """Takes the chunks of a running source, and counts their records."""

    clock: Clock
    observer: Observer
    memory: MemoryBudget
    run_id: str
    """The run, for the names of partitions that no later run can read again."""

    @property
    @abstractmethod
    def has_room(self) -> bool:
        """Whether a record put now would not have to wait."""

    @abstractmethod
    def refused(self, records: int, reason: Refusal) -> None:
        """Count records whose sender was told no; they were never received."""

    @abstractmethod
    async def put(self, chunk: Chunk) -> None:
        """Take the chunk over.

        Its records count as received from the call on, and a graceful stop that cancels the caller while it waits for
        room loses none of them.
        """

    async def begin(self, key: str | None) -> StoredRequest | None:
        """Begin a request that is stored whole or not at all; return None where nothing is stored.

        A request with a key waits while an earlier one with that key is being stored.
        """
        return None

    # A spool keeps records between their receipt and the inbox: for it `put` comes in parts. They raise where an intake
    # does not count, since one that did nothing would break the identity of counts without a word.

    def received(self, chunk: Chunk) -> None:
        """Count records as received and in flight."""
        raise NotImplementedError("this intake counts records when they are put")

    def recovered(self, chunk: Chunk) -> None:
        """Count records as in flight again that were received before this run."""
        raise NotImplementedError("this intake counts records when they are put")

    def lost(self, records: int) -> None:
        """Count records in flight as dropped: what held them is damaged."""
        raise NotImplementedError("this intake counts records when they are put")

    async def enqueue(self, chunk: Chunk) -> None:
        """Take over a chunk whose records were counted."""
        raise NotImplementedError("this intake counts records when they are put")


class StoredRequest(ABC):
    """The records of one request, which are put into it: `commit` stores all of them, else none."""

    def __init__(self, intake: Intake) -> None:
        self.clock, self.observer, self.memory = intake.clock, intake.observer, intake.memory

    @abstractmethod
    async def put(self, chunk: Chunk) -> None:
        """Take the chunk over. Raises SpoolFull and RequestTooLarge."""

    @abstractmethod
    async def commit(self) -> int:
        """Wait until the request is durable. Returns how many records it has.

        A repeated request is not stored again, and has as many as the first. Raises KeyReused, SpoolFull
        when a stop finds the disk full, and SourceError when nothing can be stored any more.
        """

    @abstractmethod
    def discard(self) -> None:
        """Let go of a request that is not committed. Harmless after `commit`."""
