"""A budget in bytes, shared first come first served. One lies over everything that holds record bytes: partial records,
inbox, batches in flight, outputs.

A read reserves its bytes first, and waits while there are too few; bytes that are held already are taken at once.
`used` is the sum of what was taken and not given back, at any moment.
"""

from collections import deque

import anyio

from streambatch.core.errors import OptionError
from streambatch.core.options import options
from streambatch.core.units import Size

# With less, the 1024 connections that a source has by default would not get their allowances, see `core.leases`.
SMALLEST_MEMORY = 8 << 20


@options
class Limits:
    """What the pipeline as a whole may hold."""

    memory: Size = 256 << 20
    """Bytes of records held at once, from partial lines to scores not yet written."""

    def __post_init__(self) -> None:
        if self.memory < SMALLEST_MEMORY:
            raise OptionError("memory", f"{self.memory} bytes", "at least 8MiB")


class Budget:
    """Bytes that can be reserved, taken and given back. Not for use from other threads."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.used = 0
        self._waiting: deque[tuple[int, anyio.Event]] = deque()

    @property
    def is_wanted(self) -> bool:
        """Whether bytes are waited for."""
        return bool(self._waiting)

    def try_reserve(self, size: int) -> bool:
        """Take `size` bytes if they are free and not waited for. Returns whether they were taken."""
        # Those that wait come first: else small reservations could keep a large one waiting for ever.
        if self._waiting or self.used + min(size, self.capacity) > self.capacity:
            return False
        self.used += size
        return True

    async def reserve(self, size: int) -> None:
        """Wait until `size` bytes are free, then take them; more than the capacity is taken when all of it is free."""
        if self.try_reserve(size):
            return
        granted = anyio.Event()
        entry = (size, granted)
        self._waiting.append(entry)
        try:
            await granted.wait()
        except BaseException:
            # They were taken for it before it could run, and it was cancelled in between.
            if granted.is_set():
                self.give(size)
            else:
                # It may have been the first, and too large: those behind it may fit now.
                self._waiting.remove(entry)
                self._grant()
            raise

    def take(self, size: int) -> None:
        """Take bytes that are held already, beyond the capacity if need be."""
        self.used += size

    def give(self, size: int) -> None:
        """Give bytes back; the first that wait get theirs."""
        self.used -= size
        if self._waiting:
            self._grant()

    def _grant(self) -> None:
        # Only a reservation over the capacity is cut down here: it is granted when everything else was given back.
        while self._waiting and self.used + min(self._waiting[0][0], self.capacity) <= self.capacity:
            size, granted = self._waiting.popleft()
            self.used += size
            granted.set()
