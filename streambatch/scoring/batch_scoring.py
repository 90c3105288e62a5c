"""A batch as executors pass it on: prepared once, then sent through the model as often as its attempts ask for.

Executors share this part, so that they differ only in where the model is called.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from streambatch.core.batches import Batch
from streambatch.core.outcomes import Outcome
from streambatch.core.retry import Random, RetryPolicy
from streambatch.core.types import FloatArray
from streambatch.scoring.attempts import Attempts
from streambatch.scoring.transform import Now, Prepared, Transform

Done = Callable[[Batch, Outcome | Exception], None]
"""Gets every batch once, with its outcome or with the error that ends the run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoringContext:
    """The transform and limits that batches are scored with, in any executor."""

    transform: Transform
    now: Now
    policy: RetryPolicy
    random: Random
    timeout: float | None
    """Seconds that one call of the model may take; None: any time."""


class BatchScoring:
    """A batch that is being scored, and how far its rows came. Only one thread or task may use it at a time."""

    __slots__ = ("attempts", "batch", "context", "prepared")

    def __init__(self, context: ScoringContext, batch: Batch) -> None:
        """Prepare the batch. Raises what `Transform.prepare` raises."""
        self.context, self.batch = context, batch
        self.prepared: Prepared = context.transform.prepare(batch, context.now)
        self.attempts = Attempts(len(self.prepared.ids), context.policy, context.random)

    def call(self, span: slice) -> None:
        """Call a sync model with `span`, and record the result."""
        self.attempts.started(self.context.now())
        self.record(self.result_of(span))

    def result_of(self, span: slice) -> FloatArray | Exception:
        """Return the scores of a sync model for `span`, or its error. Changes nothing."""
        try:
            # Nothing is recorded here: a thread that was given up comes back from this call when another one has the
            # batch.
            return self.context.transform.call(self.prepared, span)
        except Exception as error:
            return error

    def record(self, result: FloatArray | Exception) -> None:
        """Record what the call that was started last came to."""
        if isinstance(result, Exception):
            self.attempts.failed(result, self.context.now())
        else:
            self.attempts.succeeded(result)

    def outcome(self) -> Outcome:
        """Return what became of the batch, once `attempts.span` is None."""
        return self.context.transform.complete(self.prepared, self.attempts, self.context.now)
