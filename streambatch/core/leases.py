"""Room for records that are not complete, lent to the connections that hold them.

A partial record can't be drained: only its sender can complete it. So the connections of all sources that draw on one
memory budget hold at most an eighth of it by small allowances, one each, and at most a quarter by leases, of which a
connection must have one to hold more than its allowance. The rest stays free for what moves on, so that no wait for
room lasts for ever.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from weakref import WeakKeyDictionary

from streambatch.core.budget import Budget
from streambatch.core.errors import SourceError
from streambatch.core.intake import MemoryBudget
from streambatch.core.units import format_size

ALLOWANCE_MIN = 1 << 10
ALLOWANCE_MAX = 64 << 10


class RecordLeases:
    """A pool of bytes lent first come first served, and the allowance of connections that borrow nothing."""

    def __init__(self, capacity: int) -> None:
        """capacity: bytes of the memory budget."""
        self.capacity = capacity
        self.allowance = ALLOWANCE_MAX
        """Bytes that a connection may hold without a lease."""
        self._pool = Budget(capacity // 4)
        self._connections = 0

    @property
    def are_wanted(self) -> bool:
        """Whether a connection waits for a lease."""
        return self._pool.is_wanted

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
        """Borrow room for a record of `size` bytes at once. Returns how much was lent: 0 if there is none to have."""
        # A record that is larger than the pool gets all of it, since it could never have more.
        asked = min(size, self._pool.capacity)
        return asked if self._pool.try_reserve(asked) else 0

    async def take(self, size: int) -> int:
        """Wait for room for a record of `size` bytes. Returns how much was lent, which is all there is at most."""
        asked = min(size, self._pool.capacity)
        await self._pool.reserve(asked)
        return asked

    def give(self, lent: int) -> None:
        """Give back what was borrowed."""
        self._pool.give(lent)

    def _share(self, connections: int) -> None:
        self._connections += connections
        each = self.capacity // 8 // max(1, self._connections)
        self.allowance = max(ALLOWANCE_MIN, min(ALLOWANCE_MAX, each))


# The sources of a run know nothing of each other but their budget. Weak keys: the leases go when the run's budget does.
_LEASES: WeakKeyDictionary[MemoryBudget, RecordLeases] = WeakKeyDictionary()


def leases_of(memory: MemoryBudget) -> RecordLeases:
    """Return the leases that all sources on this budget share."""
    leases = _LEASES.get(memory)
    if leases is None:
        leases = _LEASES[memory] = RecordLeases(memory.capacity)
    return leases
