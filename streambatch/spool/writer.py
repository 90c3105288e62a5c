"""The task that writes a spool: requests in, one fsync for all that came meanwhile.

It alone changes anything on disk.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import anyio
from anyio import to_thread

from streambatch.core.clock import Clock
from streambatch.core.errors import SourceError
from streambatch.spool.disk import FULL, SpoolDisk
from streambatch.spool.folder import BlockPlace, SpoolFolder, SpoolSegment
from streambatch.spool.request import PendingRequest, RequestQueue
from streambatch.spool.space import SpoolSpace

GROUP_BYTES = 8 << 20
"""Bytes written with one fsync; the request that reaches them is the last."""

Stored = Callable[[Sequence[PendingRequest], Sequence[BlockPlace]], None]
"""Takes requests that have become durable, in order, and where their blocks lie."""
Refused = Callable[[Sequence[PendingRequest], OSError], None]
"""Takes requests that a full disk did not take."""


class SpoolWriter:
    """Writes queued requests, removes acked segments, puts damaged ones aside."""

    def __init__(
        self,
        folder: SpoolFolder,
        disk: SpoolDisk,
        queue: RequestQueue,
        space: SpoolSpace,
        clock: Clock,
        *,
        stored: Stored,
        refused: Refused,
    ) -> None:
        self._folder, self._disk, self._queue, self._space, self._clock = folder, disk, queue, space, clock
        self._stored, self._refused = stored, refused
        self._acked = 0
        self._damaged: list[tuple[SpoolSegment, anyio.Event]] = []
        self._is_stopping = False
        # An event and no Signal: it is to stay set while the task is at work on what it was woken for before.
        self._woken = anyio.Event()

    def wake(self) -> None:
        """Look again whether there is something to do."""
        self._woken.set()

    def acked(self, position: int) -> None:
        """Take note that records up to a position are done with, durably."""
        self._acked = max(self._acked, position)
        if self._queue or self._is_tidy_due():
            self.wake()

    def stop(self) -> None:
        """End once everything in the queue is durable."""
        self._is_stopping = True
        self.wake()

    async def put_aside(self, segment: SpoolSegment) -> None:
        """Wait until a damaged segment is put aside."""
        done = anyio.Event()
        self._damaged.append((segment, done))
        self.wake()
        await done.wait()

    async def run(self) -> None:
        """Write until stopped. Raises SourceError when nothing can be stored any more, OSError as `SpoolDisk.do`."""
        while self._queue or not self._is_stopping:
            self._woken = anyio.Event()
            # A wake from here on is kept until the wait below: what it is about may have come too late for this round.
            await self._tidy()
            if self._queue:
                await self._write_group()
            elif not self._is_stopping:
                await self._woken.wait()

    async def _tidy(self) -> None:
        """Put damaged segments aside, and remove acked ones."""
        while self._damaged:
            segment, done = self._damaged.pop()
            await to_thread.run_sync(self._folder.put_aside, segment)
            done.set()
        if self._is_tidy_due():
            if self._space.is_crowded(self._acked):
                # The active segment is never removed; closed, it can be.
                await to_thread.run_sync(self._folder.roll)
            await self._disk.do(partial(self._folder.remove, self._acked, self._clock.wall()), can_wait=True)

    def _is_tidy_due(self) -> bool:
        return bool(self._folder.removable(self._acked)) or self._space.is_crowded(self._acked)

    async def _write_group(self) -> None:
        """Write what waits, as much as fits, with one fsync; wait where nothing does."""
        if not self._space.fits(self._queue.first.block_bytes):
            # Acks make room and wake this task; so does a stop, for which there is always room.
            await self._woken.wait()
            return
        group = self._next_group()
        try:
            places = await self._disk.do(partial(self._folder.append, [pending.request for pending in group]))
        except OSError as error:
            # Only a sender that waits can be told no. Records that were written behind can't be given back: the run
            # fails.
            if error.errno not in FULL or not all(pending.is_awaited for pending in group):
                raise
            for _ in group:
                self._queue.pop()
            self._refused(group, error)
            return
        # Only now: until they are on disk, requests count as queued, so that what they hold in memory is bounded.
        for _ in group:
            self._queue.pop()
        self._stored(group, places or ())
        self._queue.wake()

    def _next_group(self) -> list[PendingRequest]:
        group: list[PendingRequest] = []
        size, free = 0, self._space.free  # once: it adds up all segments
        for pending in self._queue:
            if group and (size >= GROUP_BYTES or size + pending.block_bytes > free):
                break
            group.append(pending)
            size += pending.block_bytes
        return group


def closed(source: str) -> SourceError:
    """Return the error that an append raises once the writer has ended."""
    return SourceError(source, "its spool is closed")
