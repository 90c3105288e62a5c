"""How much room a spool has on disk. Pure: it adds up the bytes that the other parts hold."""

from __future__ import annotations

from math import inf

from streambatch.spool.disk import SpoolDisk
from streambatch.spool.folder import SpoolFolder
from streambatch.spool.request import RequestQueue

FREE_SHARE = 16
"""A spool with less than one part in so many to spare says that it is full, before anything large is begun."""


class SpoolSpace:
    """The bytes of one spool, of at most `max_bytes`."""

    def __init__(self, folder: SpoolFolder, disk: SpoolDisk, queue: RequestQueue, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.staged = 0
        """Bytes of requests that are not complete, in files of their own."""
        self._folder, self._disk, self._queue = folder, disk, queue

    @property
    def used(self) -> int:
        """Bytes on disk, or on their way there."""
        return self._folder.size + self._queue.block_bytes + self.staged

    @property
    def has_room(self) -> bool:
        """Whether what is appended now, unless it is large, would not have to wait for space."""
        if self._disk.outage is not None or self._queue.is_full:
            return False
        return self.used <= self.max_bytes - self.max_bytes // FREE_SHARE

    @property
    def free(self) -> float:
        """Bytes that there is room for; without a limit at a stop, which stores all that was read.

        What is staged takes its room until it is let go: while it is copied, it is on disk twice.
        """
        return inf if self._disk.is_hurried else self.max_bytes - self._folder.size - self.staged

    def fits(self, block_bytes: int) -> bool:
        """Whether there is room for blocks; an empty spool takes a request of any size."""
        # Else a request larger than the spool would wait for ever.
        return self._folder.size == 0 or block_bytes <= self.free

    def is_crowded(self, acked: int) -> bool:
        """Whether the segment that is written must make room, being acked already."""
        # Every segment is a file: one is closed early only where its room is needed.
        is_large = 2 * self._folder.size > self.max_bytes or (
            len(self._queue) > 0 and not self.fits(self._queue.first.block_bytes)
        )
        return is_large and self._folder.is_done(acked)
