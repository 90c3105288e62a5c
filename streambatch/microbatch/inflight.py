"""How many batches are under way between window and output, and whether one more may start. Pure.

A worker must be able to take it, and what waits for its turn to be written is bounded in batches and bytes, so that a
batch that hangs holds back the output but not, up to that bound, the others.
"""

from streambatch.records import Batch, Outcome

AHEAD_BATCHES = 1024
"""Batches that may be finished ahead of one that holds the output back."""


class InFlight:
    """Batches cut and not yet written, and their bytes."""

    def __init__(self, capacity: int, size_max: int) -> None:
        self.capacity, self.size_max = capacity, size_max
        self.scoring = self.batches = self.size = 0

    @property
    def has_slot(self) -> bool:
        """Whether another batch may be cut."""
        if self.scoring >= self.capacity or self.batches >= self.capacity + AHEAD_BATCHES:
            return False
        return self.batches == 0 or self.size < self.size_max

    def started(self, batch: Batch) -> None:
        """Count a batch that goes to the workers."""
        self.scoring += 1
        self.batches += 1
        self.size += batch.size

    def scored(self, outcome: Outcome | None) -> None:
        """Count a batch that came back from the workers, with its scores if it has some."""
        self.scoring -= 1
        if outcome is not None:
            self.size += outcome.size

    def written(self, batch: Batch, outcome: Outcome) -> int:
        """Count a batch as written. Returns the bytes it held."""
        size = batch.size + outcome.size
        self.batches -= 1
        self.size -= size
        return size
