"""Who may hold how much of records that are not complete.

A partial record can't be drained: only its sender can complete it. So the connections of all sources that draw on one
memory budget hold at most an eighth of it by small allowances, one each, and at most a quarter by grants, which a
connection must own to hold more than its allowance. The rest stays free for what moves on: nobody waits for room
forever.
"""

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from weakref import WeakKeyDictionary

import anyio

from streambatch.core.errors import SourceError
from streambatch.core.intake import Memory
from streambatch.core.units import format_size

ALLOWANCE_MIN = 1 << 10
ALLOWANCE_MAX = 64 << 10


class Grants:
    """A pool of bytes lent first come first served, and the allowance of those who borrow nothing."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.allowance = ALLOWANCE_MAX
        self._lent_max = capacity // 4
        self._free = self._lent_max
        self._connections = 0
        self._waiting: deque[tuple[int, anyio.Event]] = deque()

    @property
    def are_wanted(self) -> bool:
        """Whether a connection waits for a grant."""
        return bool(self._waiting)

    @contextmanager
    def shared_by(self, source: str, connections: int, record_bytes_max: int) -> Iterator[None]:
        """Set allowances apart for so many connections of a source. Raises SourceError when the budget is too small."""
        if record_bytes_max > self.capacity // 2:
            needed = format_size(2 * record_bytes_max)
            raise SourceError(source, f"max_record_bytes {record_bytes_max} needs [limits] memory of at least {needed}")
        total = self._connections + connections
        if total * ALLOWANCE_MIN > self.capacity // 8:
            needed = format_size(8 * total * ALLOWANCE_MIN)
            raise SourceError(source, f"{total} connections need [limits] memory of at least {needed}")
        self._share(connections)
        try:
            yield
        finally:
            self._share(-connections)

    def try_take(self, size: int) -> int:
        """Borrow room for a record of `size` bytes if nobody waits. Returns what to give back: 0 if there is none."""
        asked = min(size, self._lent_max)
        if self._waiting or self._free < asked:
            return 0
        self._free -= asked
        return asked

    async def take(self, size: int) -> int:
        """Wait for room for a record of `size` bytes. Returns what to give back."""
        lent = self.try_take(size)
        if lent:
            return lent
        asked, granted = min(size, self._lent_max), anyio.Event()
        entry = (asked, granted)
        self._waiting.append(entry)
        try:
            await granted.wait()
        except BaseException:
            if granted.is_set():
                self.give(asked)
            else:
                self._waiting.remove(entry)
                self._lend()
            raise
        return asked

    def give(self, lent: int) -> None:
        """Give back what was borrowed."""
        self._free += lent
        self._lend()

    def _lend(self) -> None:
        while self._waiting and self._waiting[0][0] <= self._free:
            asked, granted = self._waiting.popleft()
            self._free -= asked
            granted.set()

    def _share(self, connections: int) -> None:
        self._connections += connections
        each = self.capacity // 8 // max(1, self._connections)
        self.allowance = max(ALLOWANCE_MIN, min(ALLOWANCE_MAX, each))


_GRANTS: WeakKeyDictionary[Memory, Grants] = WeakKeyDictionary()


def grants_of(memory: Memory) -> Grants:
    """Return the grants that all sources on this budget share."""
    grants = _GRANTS.get(memory)
    if grants is None:
        grants = _GRANTS[memory] = Grants(memory.capacity)
    return grants
