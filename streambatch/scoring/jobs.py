"""A batch as executors pass it on: prepared once, then called through the model as often as its trial asks for.

What doesn't depend on where the model is called is here, so that executors differ in nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from streambatch.core.batches import Batch
from streambatch.core.outcomes import Outcome
from streambatch.core.retry import Random, RetryPolicy
from streambatch.core.types import FloatArray
from streambatch.scoring.attempts import Trial
from streambatch.scoring.transform import Now, Prepared, Transform

Done = Callable[[Batch, Outcome | Exception], None]
"""Is told of every batch once: its outcome, or the error that ends the run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """How batches are scored, wherever that is. timeout: seconds that one call of the model may take; None: any."""

    transform: Transform
    now: Now
    policy: RetryPolicy
    random: Random
    timeout: float | None


class Job:
    """A batch that was prepared, and how far its rows came with the model. Only its holder may touch it."""

    __slots__ = ("batch", "prepared", "terms", "trial")

    def __init__(self, terms: Terms, batch: Batch) -> None:
        """Prepare the batch. Raises what `Transform.prepare` raises."""
        self.terms, self.batch = terms, batch
        self.prepared: Prepared = terms.transform.prepare(batch, terms.now)
        self.trial = Trial(len(self.prepared.ids), terms.policy, terms.random)

    def call(self, span: slice) -> None:
        """Call a sync model with `span`, and learn what it made of it."""
        self.trial.started(self.terms.now())
        self.learn(self.tried(span))

    def tried(self, span: slice) -> FloatArray | Exception:
        """Return what a sync model makes of `span`. Changes nothing, so that a call may be left alone."""
        try:
            return self.terms.transform.call(self.prepared, span)
        except Exception as error:
            return error

    def learn(self, result: FloatArray | Exception) -> None:
        """Learn what the call that was started last came to."""
        if isinstance(result, Exception):
            self.trial.failed(result, self.terms.now())
        else:
            self.trial.succeeded(result)

    def outcome(self) -> Outcome:
        """Return what became of the batch, once its trial is over."""
        return self.terms.transform.complete(self.prepared, self.trial, self.terms.now)
