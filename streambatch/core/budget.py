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
            if granted.is_set():  # cancelled after they were taken for it, and before it could run
                self.give(size)
            else:
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
        while self._waiting and self.used + min(self._waiting[0][0], self.capacity) <= self.capacity:
            size, granted = self._waiting.popleft()
            self.used += size
            granted.set()
