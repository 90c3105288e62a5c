"""The interface between the outbox and the pipeline."""

from __future__ import annotations

from typing import Protocol

from streambatch.core.batches import Batch
from streambatch.core.outcomes import Outcome, Reject

Finished = tuple[Batch, Outcome]
"""A batch and its outcome."""


class BatchOwner(Protocol):
    """The part of a pipeline that adds batches to an outbox. It must not block and must not raise."""

    @property
    def is_busy(self) -> bool:
        """Whether a full batch waits to be scored, so that more scores come soon."""
        ...

    def written(self, batch: Batch, outcome: Outcome) -> None:
        """Take note that a batch was written, in order. Its bytes are let go of right after."""
        ...

    def acked(self, batch: Batch, outcome: Outcome) -> None:
        """Take note that the scores and dead letters of a batch are durable, in order."""
        ...

    def refused(self, batch: Batch, index: int, error: str) -> Reject:
        """Return the reject of a record that the sink will never take. index: its place in the batch."""
        ...
