"""How many batches are under way between window and output, and whether one more may start. Pure.

A worker must be able to take it. Batches that wait for their turn to be written are bounded in number and bytes, so
that a batch that hangs holds back the output but not, up to that bound, the others. A batch is cut ahead of a free
worker only where batches are quick: records that arrive meanwhile have to wait for it as well.
"""

from math import inf

from streambatch.core.batches import Batch
from streambatch.core.outcomes import Outcome

AHEAD_BATCHES = 1024
"""Batches that may be finished ahead of one that holds the output back."""
QUICK_SECONDS = 0.005
"""Batches scored in less are always cut ahead: handing over one takes a share of that, and a worker would idle."""


class InFlight:
    """Batches cut and not yet written, and their bytes.

    capacity: batches that may run or wait for a worker. workers: how many run at once. patience: seconds that a batch
    may take and still be cut ahead of a free worker; a record then waits no longer for one than it may for its batch.
    """

    def __init__(self, capacity: int, size_max: int, *, workers: int | None = None, patience: float = inf) -> None:
        self.size_max = size_max
        self.scoring = self.batches = self.size = 0
        # No batch was timed yet: until one is, none is cut ahead of a free worker.
        self._seconds = inf
        self.resize(capacity, workers=workers, patience=patience)

    def resize(self, capacity: int, *, workers: int | None = None, patience: float = inf) -> None:
        """Count against other bounds from now on."""
        self.capacity, self._workers = capacity, min(capacity, workers or capacity)
        self._patience = max(patience, QUICK_SECONDS)

    @property
    def has_slot(self) -> bool:
        """Whether another batch may be cut."""
        scoring_max = self.capacity if self._seconds <= self._patience else self._workers
        if self.scoring >= scoring_max or self.batches >= self.capacity + AHEAD_BATCHES:
            return False
        # A lone batch may start whatever its size, or one larger than the bound never could.
        return self.batches == 0 or self.size < self.size_max

    def started(self, batch: Batch) -> None:
        """Count a batch that goes to the workers."""
        self.scoring += 1
        self.batches += 1
        self.size += batch.size

    def scored(self, batch: Batch, outcome: Outcome | None) -> None:
        """Count a batch that came back from the workers, with its scores if it has some."""
        self.scoring -= 1
        self._seconds = batch.stamps.encoded - batch.stamps.started
        if outcome is not None:
            self.size += outcome.size

    def written(self, batch: Batch, outcome: Outcome) -> int:
        """Count a batch as written. Returns the bytes it held."""
        size = batch.size + outcome.size
        self.batches -= 1
        self.size -= size
        return size
