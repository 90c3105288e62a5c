"""Runs an executor as a pipeline would, and keeps what comes back."""

from collections.abc import Callable
from typing import Any

import anyio

from streambatch.core.batches import Batch
from streambatch.core.clock import SystemClock
from streambatch.core.outcomes import Outcome
from streambatch.scoring.executors.choice import Workers, make_executor
from streambatch.scoring.executors.executor import Executor
from streambatch.scoring.transform import Transform
from streambatch.testing.virtual_time import LoopClock
from tests.scoring.fakes import batch_of, numbers


class Desk:
    """Submits batches as slots come free and collects what comes back.

    Batch k holds `size` records, k * size and those that follow.
    """

    def __init__(
        self,
        transform: Transform,
        *,
        size: int = 2,
        now: Callable[[], float] | None = None,
        random: Callable[[], float] = float,
        **workers: Any,
    ) -> None:
        self.results: dict[int, Outcome | Exception] = {}
        self.batches: dict[int, Batch] = {}
        self.order: list[int] = []
        self.came_back = anyio.Event()
        self.now = now or SystemClock().monotonic
        self._size, self._held = size, 0
        self.executor: Executor = make_executor(Workers(**workers), transform, self._done, self.now, random)

    def _done(self, batch: Batch, result: Outcome | Exception) -> None:
        assert batch.sequence not in self.results
        self.results[batch.sequence] = result
        self.order.append(batch.sequence)
        self._held -= 1
        self.came_back.set()
        self.came_back = anyio.Event()

    def submit(self, sequence: int) -> None:
        self._held += 1
        batch = batch_of(numbers(*range(sequence * self._size, (sequence + 1) * self._size)), sequence=sequence)
        batch.stamps.opened = batch.stamps.closed = self.now()
        self.batches[sequence] = batch
        self.executor.submit(batch)

    async def run(self, batches: int, first: int = 0) -> None:
        """Score so many batches; a batch that comes back as an error stops it like a run."""
        with anyio.fail_after(1e9 if isinstance(getattr(self.now, "__self__", None), LoopClock) else 20):
            async with self.executor:
                for sequence in range(first, first + batches):
                    while self._held >= self.executor.capacity:
                        await self.came_back.wait()
                    self.submit(sequence)
                while len(self.results) < batches:
                    await self.came_back.wait()

    def outcome(self, sequence: int) -> Outcome:
        result = self.results[sequence]
        assert isinstance(result, Outcome), result
        return result

    def outcomes(self) -> list[Outcome]:
        """Return all outcomes in order of batches."""
        return [self.outcome(sequence) for sequence in sorted(self.results)]

    def ends(self) -> list[tuple[str, str]]:
        """Return of each record, in order, its line and what became of it."""
        found = []
        for sequence in sorted(self.results):
            outcome = self.outcome(sequence)
            lines = [line.partition("=")[0] for line in outcome.payload.decode().splitlines()]
            scored = [(line, "scored") for line in lines]
            dead = [(reject.record.decode(), reject.error) for reject in outcome.rejects]
            assert [int(line) for line in lines] == sorted(int(line) for line in lines)
            found += sorted(scored + dead, key=lambda end: int(end[0]))
        return found
