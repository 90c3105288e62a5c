"""Requests on their way into a spool: blocks that count together or not at all, and the queue they wait in."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import anyio

from streambatch.core.chunks import Chunk
from streambatch.core.signal import Signal
from streambatch.spool.blocks import NewBlock, RequestKey


class SpoolRequest(NamedTuple):
    """Blocks that count together: at least one."""

    blocks: Sequence[NewBlock]
    staged: int | None
    """A file that holds, one after the other, the blocks that have nothing packed; None where all are in memory."""
    key: RequestKey | None

    @property
    def block_bytes(self) -> int:
        return sum(block.block_bytes for block in self.blocks)


class PendingRequest:
    """A request that is to be written."""

    def __init__(self, request: SpoolRequest, chunks: list[Chunk | None], *, is_awaited: bool) -> None:
        """chunks: the records of each block; None for those that are staged and not in memory."""
        self.request, self.chunks = request, chunks
        self.is_awaited = is_awaited
        """Whether its sender waits until it is durable, and gets an answer if it can't be stored."""
        self.block_bytes = request.block_bytes
        self.held = sum(chunk.size for chunk in chunks if chunk is not None)
        """Bytes of records in memory."""
        self.failure: Exception | None = None
        self._settled = anyio.Event()

    def settle(self, failure: Exception | None = None) -> None:
        """Take note that it is durable, or why it never will be."""
        self.failure = failure
        self._settled.set()

    async def durable(self) -> None:
        """Wait until it is. Raises SourceError, and SpoolFull at a stop, when it never will be."""
        await self._settled.wait()
        if self.failure is not None:
            raise self.failure


class RequestQueue:
    """Requests that wait to be written, in the order in which they came."""

    def __init__(self, held_max: int) -> None:
        """held_max: bytes of records in memory from which on `room` waits."""
        self.held = self.block_bytes = 0
        self.failure: Exception | None = None
        """Why nothing can be stored any more."""
        self._held_max = held_max
        self._requests: deque[PendingRequest] = deque()
        self._is_hurried = False
        self._room = Signal()

    def __len__(self) -> int:
        return len(self._requests)

    def __iter__(self) -> Iterator[PendingRequest]:
        return iter(self._requests)

    @property
    def first(self) -> PendingRequest:
        """The request that is written next."""
        return self._requests[0]

    @property
    def is_full(self) -> bool:
        return self.held >= self._held_max

    async def room(self) -> None:
        """Wait until the queue is not full, or is hurried, or has failed."""
        # A loop, since all that wait are woken, and the first of them may fill the queue again.
        while self.is_full and not self._is_hurried and self.failure is None:
            await self._room.wait()

    def add(self, pending: PendingRequest) -> None:
        """Add a request at the end."""
        self._requests.append(pending)
        self.held += pending.held
        self.block_bytes += pending.block_bytes

    def pop(self) -> None:
        """Remove the first request. `wake` is for the caller, once for all that it removes."""
        pending = self._requests.popleft()
        self.held -= pending.held
        self.block_bytes -= pending.block_bytes

    def wake(self) -> None:
        """Wake the tasks that wait for room."""
        self._room.notify()

    def hurry(self) -> None:
        """End the waits for room, now and later."""
        self._is_hurried = True
        self.wake()

    def fail(self, error: Exception) -> list[PendingRequest]:
        """Take nothing in from now on. Returns what was left."""
        self.failure = self.failure or error
        # What was left stays counted: a queue that was full remains full, so that no source takes the failure for room.
        left = list(self._requests)
        self._requests.clear()
        self.wake()
        return left
