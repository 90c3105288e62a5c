"""Scoring in the event loop, by a sync model."""

from __future__ import annotations

from streambatch.core.batches import Batch
from streambatch.scoring.batch_scoring import BatchScoring, Done, ScoringContext
from streambatch.scoring.executors.loop import LoopExecutor


class InlineExecutor(LoopExecutor):
    """Runs a batch in `submit` itself; once it has to wait before a retry, a task does the rest."""

    def __init__(self, context: ScoringContext, done: Done) -> None:
        super().__init__(context, done, 1)

    def submit(self, batch: Batch) -> None:
        batch.stamps.started = self._context.now()
        try:
            scoring = BatchScoring(self._context, batch)
            while (span := scoring.attempts.span) is not None:
                if scoring.attempts.wait_seconds:
                    # `submit` can't wait before a retry, and must not hold up the loop: a task does the rest.
                    self._tasks.start_soon(self._finish, scoring)
                    return
                scoring.call(span)
            outcome = scoring.outcome()
        except Exception as error:
            self._done(batch, error)
        else:
            self._done(batch, outcome)

    async def _call(self, scoring: BatchScoring, span: slice) -> None:
        scoring.call(span)
