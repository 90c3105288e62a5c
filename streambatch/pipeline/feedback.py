"""The way back in a run, against the flow of the records: slots that are free again, and reasons to end the run early.

Records go one way, from Reading over the inbox to Cutting and on to Delivering. No stage calls one before it: an
earlier stage learns about the later ones from here.
"""

from __future__ import annotations

import anyio

from streambatch.core.batches import Batch
from streambatch.core.outcomes import Outcome
from streambatch.core.signal import Signal
from streambatch.microbatch.inflight import InFlight


class Feedback:
    """The way back of one run."""

    def __init__(self, in_flight: InFlight) -> None:
        self.in_flight = in_flight
        """Batches between window and output: Cutting adds them, Delivering takes them off."""
        self.slot_freed = Signal()
        """Given when another batch may perhaps be cut."""
        self.stop_asked = anyio.Event()
        """Set when the run is to end gracefully."""
        self.failed = anyio.Event()
        """Set with the first failure."""
        self._failure: Exception | None = None

    def written(self, batch: Batch, outcome: Outcome) -> int:
        """Take a batch off those in flight. Returns the bytes it held."""
        size = self.in_flight.written(batch, outcome)
        self.slot_freed.notify()
        return size

    def fail(self, error: Exception) -> None:
        """End the run with this error, if it is the first."""
        self._failure = self._failure or error
        self.failed.set()

    def check(self) -> None:
        """Raise the error that the run failed with, if it did."""
        if self._failure is not None:
            raise self._failure
