"""Scoring by an async model: each batch is a task on the event loop."""

from __future__ import annotations

import asyncio

import anyio

from streambatch.core.batches import Batch
from streambatch.core.errors import ModelError
from streambatch.core.retry import TimedOutError
from streambatch.core.types import FloatArray
from streambatch.scoring.batch_scoring import BatchScoring, ScoringContext
from streambatch.scoring.executors.loop import LoopExecutor


class TaskExecutor(LoopExecutor):
    """Runs each batch of an async model as a task; decoding and encoding happen on the loop."""

    def submit(self, batch: Batch) -> None:
        batch.stamps.started = self._context.now()
        try:
            scoring = BatchScoring(self._context, batch)
        except Exception as error:
            self._done(batch, error)
            return
        self._tasks.start_soon(self._finish, scoring)

    def replace(self, context: ScoringContext, count: int) -> None:
        self._context, self.capacity = context, count

    async def _call(self, scoring: BatchScoring, span: slice) -> None:
        timeout = scoring.context.timeout
        assert timeout is not None  # calls of an async model always have a limit
        scoring.attempts.started(scoring.context.now())
        # The result stays this if the scope ends the call.
        result: FloatArray | Exception = TimedOutError(timeout)
        with anyio.move_on_after(timeout):
            result = await self._result_of(scoring, span)
        scoring.record(result)

    async def _result_of(self, scoring: BatchScoring, span: slice) -> FloatArray | Exception:
        transform = scoring.context.transform
        try:
            return await transform.call_async(scoring.prepared, span)
        except Exception as error:
            return error
        except anyio.get_cancelled_exc_class():
            # If a cancel scope is behind it, the cancellation is raised again here. Else the model let the cancellation
            # of a task of its own out, which must not end the run silently.
            await anyio.lowlevel.checkpoint_if_cancelled()
            if _is_cancelled_from_outside():
                raise
            return ModelError(transform.model_name, "cancelled itself")


def _is_cancelled_from_outside() -> bool:
    """Whether the running task was cancelled by asyncio's own means, of which no cancel scope knows."""
    if anyio.get_cancelled_exc_class() is not asyncio.CancelledError:
        return True
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0
