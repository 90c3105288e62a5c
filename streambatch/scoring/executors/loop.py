"""The common part of executors that call the model on the event loop."""

from __future__ import annotations

from abc import ABC, abstractmethod
from types import TracebackType
from typing import Self

import anyio
import numpy as np
from anyio.abc import TaskGroup

from streambatch.scoring.batch_scoring import BatchScoring, Done, ScoringContext


class LoopExecutor(ABC):
    """Calls the model on the event loop; while a batch waits to be tried again, a task holds it."""

    restarts = 0

    def __init__(self, context: ScoringContext, done: Done, capacity: int) -> None:
        self.capacity = capacity
        self._context, self._done = context, done
        self._quiet = np.errstate(all="ignore")

    async def __aenter__(self) -> Self:
        # Before the task group is made, whose tasks then have the setting too; once, since it costs time on every
        # batch.
        self._quiet.__enter__()
        self._tasks: TaskGroup = anyio.create_task_group()
        await self._tasks.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self._tasks.__aexit__(kind, error, trace)
        finally:
            self._quiet.__exit__(kind, error, trace)

    def replace(self, context: ScoringContext, count: int) -> None:
        self._context = context

    @abstractmethod
    async def _call(self, scoring: BatchScoring, span: slice) -> None:
        """Call the model once."""

    async def _finish(self, scoring: BatchScoring) -> None:
        """Do what is left of a batch."""
        try:
            while (span := scoring.attempts.span) is not None:
                if scoring.attempts.wait_seconds:
                    await anyio.sleep(scoring.attempts.wait_seconds)
                await self._call(scoring, span)
            outcome = scoring.outcome()
        except Exception as error:
            self._done(scoring.batch, error)
        else:
            self._done(scoring.batch, outcome)
