"""Scoring in worker threads, which a call of the model that hangs doesn't stop.

Nothing can end a thread. One whose call takes too long is given up instead: another thread goes on with its batch. A
thread that was given up touches nothing any more and ends itself should it come back; until then it hangs, and no more
than `count` of them may.
"""

from __future__ import annotations

import logging
from types import TracebackType
from typing import Self

import anyio
from anyio.abc import TaskGroup

from streambatch.core.batches import Batch
from streambatch.core.errors import ModelError
from streambatch.core.outcomes import Outcome
from streambatch.core.retry import TimedOutError
from streambatch.core.signal import Signal
from streambatch.core.units import format_duration
from streambatch.scoring.batch_scoring import BatchScoring, Done, ScoringContext
from streambatch.scoring.executors.worker_threads import Worker, WorkerThreads

_log = logging.getLogger(__name__)

LEAVE_SECONDS = 2.0
"""How long a run that failed waits for its threads to come back from the model."""


class ThreadExecutor:
    """Runs batches in `count` threads of its own, each with one more batch waiting. context: with a timeout."""

    def __init__(self, context: ScoringContext, done: Done, count: int) -> None:
        self.capacity, self.restarts = 2 * count, 0
        self._context, self._done, self._count = context, done, count
        self._in_hand = 0
        """Batches that were submitted and did not come back."""
        self._submitted, self._replaced = Signal(), Signal()

    async def __aenter__(self) -> Self:
        self._threads = WorkerThreads(self._return)
        self._tasks: TaskGroup = anyio.create_task_group()
        await self._tasks.__aenter__()
        for _ in range(self._count):
            self._threads.hire()
        self._tasks.start_soon(self._watch)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self._wait_for_threads(has_failed=kind is not None)
        except BaseException as cancelled:
            await self._end(type(cancelled), cancelled, cancelled.__traceback__)
            raise
        await self._end(None, None, None)

    def submit(self, batch: Batch) -> None:
        self._in_hand += 1
        self._threads.submit(batch, self._context)
        self._submitted.notify()

    def replace(self, context: ScoringContext, count: int) -> None:
        for _ in range(self._count, count):
            self._threads.hire()
        for _ in range(count, self._count):
            self._threads.dismiss()
        self._context, self._count, self.capacity = context, count, 2 * count
        self._replaced.notify()

    async def _end(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._threads.closing.set()
        self._tasks.cancel_scope.cancel()
        await self._tasks.__aexit__(kind, error, trace)

    async def _wait_for_threads(self, *, has_failed: bool) -> None:
        if has_failed:
            self._threads.closing.set()
        for _ in range(self._count):
            self._threads.dismiss()
        with anyio.move_on_after(LEAVE_SECONDS if has_failed else None):
            await self._threads.ended.wait()

    async def _watch(self) -> None:
        """Give up calls that take too long: sleep until the first of them may be due, which is never sooner."""
        while True:
            now = self._context.now()
            # A call that starts later than now can't be due before this.
            first_due = now + _timeout(self._context)
            for worker in list(self._threads.working):
                call = worker.call
                if call is None or call.is_claimed:
                    continue
                due = call.started + _timeout(call.scoring.context)
                if now < due:
                    first_due = min(first_due, due)
                # The thread may have come back since the look above: then the claim fails, and the call was in time.
                elif call.claim():
                    self._give_up(worker, call.scoring)
            with anyio.move_on_after(first_due - now):
                await self._replaced.wait()
            # Without a batch there is no call to time: an idle run is not woken again and again.
            if self._in_hand == 0:
                await self._submitted.wait()

    def _give_up(self, worker: Worker, scoring: BatchScoring) -> None:
        """Leave a thread alone with the call it is in, and go on with its batch in another."""
        self._threads.give_up(worker)
        if self._threads.hanging > self._count:
            self._return(scoring.batch, self._too_many())
            # The thread that was given up will not report that it left; if it was the last, nothing else would set
            # `ended`.
            self._threads.end_if_none_works()
            return
        self.restarts += 1
        seconds = _timeout(scoring.context)
        fields = {"timeout_seconds": seconds, "batch": scoring.batch.sequence, "hanging": self._threads.hanging}
        _log.warning(
            "a call of the model hangs for longer than %s; another worker takes its place", format_duration(seconds),
            extra={"event": "worker_restarted", "fields": fields},
        )  # fmt: skip
        # Safe without a lock: with the claim, the batch belongs to this task alone.
        scoring.record(TimedOutError(seconds))
        self._threads.hire(scoring)

    def _too_many(self) -> ModelError:
        timeout = format_duration(_timeout(self._context))
        return ModelError(
            self._context.transform.model_name,
            f"{self._threads.hanging} calls hang for longer than {timeout}; with [workers] count = "
            f"{self._count} no more than {self._count} may; raise [workers] timeout if the model only needs longer",
        )

    def _return(self, batch: Batch, result: Outcome | Exception) -> None:
        self._in_hand -= 1
        self._done(batch, result)


def _timeout(context: ScoringContext) -> float:
    assert context.timeout is not None
    return context.timeout
