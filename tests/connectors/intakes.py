"""What a source is given to push into, in tests: it keeps what is put and can be stalled."""

from collections import Counter, defaultdict
from collections.abc import Callable

import anyio

from streambatch.core.budget import Budget
from streambatch.core.chunks import Chunk
from streambatch.core.clock import Clock, SystemClock
from streambatch.core.events import Observer, Refusal, RejectedConnection
from streambatch.core.intake import Intake, MemoryBudget


class PeakBudget(Budget):
    """A budget that remembers the most that was ever taken."""

    peak = 0
    _used = 0

    @property
    def used(self) -> int:
        return self._used

    @used.setter
    def used(self, value: int) -> None:
        self._used = value
        self.peak = max(self.peak, value)


class CountingObserver(Observer):
    """Counts what happens to connections."""

    def __init__(self) -> None:
        self.opened = self.closed = 0
        self.rejected: Counter[RejectedConnection] = Counter()
        self.blocked = 0.0

    def connection_opened(self, source: str) -> None:
        self.opened += 1

    def connection_closed(self, source: str) -> None:
        self.closed += 1

    def connection_rejected(self, source: str, reason: RejectedConnection) -> None:
        self.rejected[reason] += 1

    def source_blocked(self, source: str, seconds: float) -> None:
        self.blocked += seconds


class ManualClock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def wall(self) -> float:
        return self.now


class KeepingIntake(Intake):
    """Keeps every chunk and gives its bytes back at once; while stalled it keeps callers waiting instead."""

    run_id = "run"

    def __init__(self, memory: int = 256 << 20, clock: Clock | None = None) -> None:
        self.memory: MemoryBudget = (budget := PeakBudget(memory))
        self.observer: Observer = (seen := CountingObserver())
        self.clock: Clock = clock or SystemClock()
        self.budget, self.seen = budget, seen
        self.chunks: list[Chunk] = []
        self.refusals: Counter[Refusal] = Counter()
        self.count = self.waiting = 0
        self._changed = anyio.Event()
        self._gate: anyio.Event | None = None

    @property
    def has_room(self) -> bool:
        return self._gate is None

    def refused(self, records: int, reason: Refusal) -> None:
        self.refusals[reason] += records

    async def put(self, chunk: Chunk) -> None:
        if self._gate is not None:
            self.waiting += 1
            self._notify()
            await self._gate.wait()
            self.waiting -= 1
        self.memory.give(chunk.size)
        self.chunks.append(chunk)
        self.count += chunk.count
        self._notify()

    def stall(self) -> None:
        self._gate = anyio.Event()

    def go_on(self) -> None:
        assert self._gate is not None
        self._gate.set()
        self._gate = None

    async def holds(self, count: int) -> None:
        """Wait until so many records were put."""
        while self.count < count:
            await self._changed.wait()

    async def is_waited_for(self) -> None:
        """Wait until somebody waits to put a chunk."""
        while not self.waiting:
            await self._changed.wait()

    def by_partition(self) -> dict[str, list[bytes]]:
        """Return every partition's records with their framing, the dead ones too."""
        found: dict[str, list[bytes]] = defaultdict(list)
        for chunk in self.chunks:
            found[chunk.partition.name].extend(bytes(chunk.raw(i)) for i in range(chunk.count))
        return dict(found)

    def records(self) -> list[bytes]:
        """Return every record that is not dead, with its framing."""
        return [bytes(c.raw(i)) for c in self.chunks if c.fault is None for i in range(c.count)]

    def faults(self) -> list[tuple[str, bytes]]:
        """Return reason and bytes of every record that died while it was framed."""
        return [(c.fault.reason, bytes(c.raw(0))) for c in self.chunks if c.fault is not None]

    def _notify(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()


async def until(condition: Callable[[], bool]) -> None:
    """Wait until something that tells nobody has come about."""
    while not condition():
        await anyio.sleep(0.001)
