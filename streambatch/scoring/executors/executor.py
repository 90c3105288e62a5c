"""The interface of all executors, which run the transform, and the promises that each of them keeps.

An executor holds at most `capacity` batches, running or waiting for a worker; its caller submits no more. Every batch
submitted comes back once, through `done`, on the event loop, with its outcome or with the error that ends the run;
batches come back in any order. Only a hard stop leaves batches behind. Warnings of numpy are off while a batch is
scored: numbers that are not finite become rejects.
"""

from __future__ import annotations

from types import TracebackType
from typing import Protocol, Self

from streambatch.core.batches import Batch
from streambatch.scoring.batch_scoring import ScoringContext


class Executor(Protocol):
    """Runs the transform."""

    capacity: int
    restarts: int
    """Workers that were replaced because a call of the model hung."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def submit(self, batch: Batch) -> None:
        """Take a batch; `done` gets it sooner or later."""
        ...

    def replace(self, context: ScoringContext, count: int) -> None:
        """Score what is submitted from now on in this context, by so many workers.

        What was submitted before ends in the context that it began in.

        The model is as sync, or async, as the one before.
        """
        ...
