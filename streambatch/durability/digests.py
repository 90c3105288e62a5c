"""SHA-256 of the records of each partition, in their order, as they are written: what a run can be verified against.

Hashing runs in a thread of its own beside the event loop, which it hardly holds up: large updates release the
interpreter. What waits for it is bounded.
"""

from __future__ import annotations

import threading
from collections import deque
from queue import SimpleQueue
from typing import Any

from anyio import to_thread

from streambatch.core.chunks import Chunk, Partition

SENT_BYTES = 4 << 20
"""Bytes that the thread gets at once, or more: each time it is woken it takes its turn from the event loop."""
HELD_BYTES_MAX = 8 << 20
"""Bytes that may wait to be hashed; with more of them the writer waits too."""


class _Stretch:
    """Records that follow each other in one payload, on their way to be hashed at once."""

    __slots__ = ("chunk", "end", "payload", "size", "start")

    def __init__(self, chunk: Chunk) -> None:
        self.chunk, self.size = chunk, chunk.size
        self.payload, self.start, self.end = chunk.digest_span()

    def takes(self, chunk: Chunk) -> bool:
        """Take a chunk that follows; False if it doesn't."""
        if chunk.payload is not self.payload:
            return False
        _, start, end = chunk.digest_span()
        if start != self.end or chunk.partition != self.chunk.partition:
            return False
        self.end = end
        self.size += chunk.size
        return True


class Digests:
    """Running digests by partition. `add` and `point` are called in the order of records, on the event loop."""

    def __init__(self) -> None:
        # Without a bound of its own: `settle` bounds it by bytes, and what is put must never block the event loop.
        self._queue: SimpleQueue[list[_Stretch] | DigestPoint | Partition | None] = SimpleQueue()
        self._points: deque[DigestPoint] = deque()  # those whose digests were not returned yet
        self._stretches: list[_Stretch] = []
        self._unsent = 0
        self._digests: dict[Partition, Any] = {}  # of the thread alone, as is `_changed`
        self._changed: set[Partition] = set()
        self._added = self._hashed = 0  # each is counted by one thread only
        self._thread: threading.Thread | None = None

    def add(self, chunk: Chunk) -> None:
        """Take the records of a chunk, which may be released right after."""
        self._added += chunk.size
        if not self._stretches or not self._stretches[-1].takes(chunk):
            if self._unsent >= SENT_BYTES:
                self._send()
            self._stretches.append(_Stretch(chunk))
        self._unsent += chunk.size

    def point(self) -> DigestPoint:
        """Return a point that has, once it is reached, the digests of all that was added before."""
        self._send()
        point = DigestPoint()
        self._points.append(point)
        self._queue.put(point)
        return point

    async def until(self, point: DigestPoint) -> dict[Partition, str]:
        """Wait for a point. Returns the digests that changed up to it and were not returned before."""
        await point.reached()
        digests: dict[Partition, str] = {}
        # Earlier points are included, since a wait for one of them may have been cancelled.
        while point in self._points:
            digests |= self._points.popleft().digests
        return digests

    def forget(self, partition: Partition) -> None:
        """Drop the digest of a partition that is over; one that comes again under its name is hashed from its start."""
        self._send()
        self._queue.put(partition)

    async def settle(self) -> None:
        """Wait while too much waits to be hashed."""
        if self._added - self._hashed > HELD_BYTES_MAX:
            await self.point().reached()

    def start(self) -> None:
        """Start the thread."""
        # A daemon, so that it keeps no process alive that ends without `close`.
        self._thread = threading.Thread(target=self._work, name="streambatch-digests", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread once it has done what it has."""
        if self._thread is not None:
            self._queue.put(None)
            self._thread = None

    def _send(self) -> None:
        stretches, self._stretches, self._unsent = self._stretches, [], 0
        if stretches:
            self._queue.put(stretches)

    def _work(self) -> None:
        failure: Exception | None = None
        while (item := self._queue.get()) is not None:
            if isinstance(item, DigestPoint):
                changed = {partition: self._digests[partition].hexdigest() for partition in self._changed}
                item.reach(changed, failure)
                self._changed.clear()
            elif isinstance(item, Partition):
                self._digests.pop(item, None)
                self._changed.discard(item)
            # After a failure nothing more is hashed: a digest that leaves records out would be taken for one of all.
            elif failure is None:
                try:
                    for stretch in item:
                        self._hash(stretch)
                except Exception as error:  # raised to the tasks that wait, which would else wait for ever
                    failure = error

    def _hash(self, stretch: _Stretch) -> None:
        partition = stretch.chunk.partition
        digest = self._digests.get(partition)
        if digest is None:
            digest = self._digests[partition] = stretch.chunk.digest()
        digest.update(stretch.chunk.cut(stretch.payload, stretch.start, stretch.end))
        self._changed.add(partition)
        self._hashed += stretch.size


class DigestPoint:
    """The digests of the partitions that changed between the point before and this one, as hexadecimal."""

    def __init__(self) -> None:
        self.digests: dict[Partition, str] = {}
        self._failure: Exception | None = None
        self._reached = threading.Event()

    async def reached(self) -> dict[Partition, str]:
        """Wait for the digests. Raises what kept the thread from making them."""
        if not self._reached.is_set():
            # The thread that waits can't be cancelled: it is left to end when the point is reached.
            await to_thread.run_sync(self._reached.wait, abandon_on_cancel=True)
        if self._failure is not None:
            raise self._failure
        return self.digests

    def reach(self, digests: dict[Partition, str], failure: Exception | None) -> None:
        """Set the digests, or why there are none. Called from the thread."""
        self.digests, self._failure = digests, failure
        self._reached.set()
