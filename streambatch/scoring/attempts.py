"""A batch's way through the model: what to call next, after which wait, and what became of each row.

Pure: results, errors and `now` in, decisions out, so that every executor decides alike. An error is retried if it is
passing, and once its attempts are used up the rows of the call die as they are: what fails is behind the model, and
smaller calls would only multiply what it has to refuse. Any other error has the rows halved until the guilty are alone.
"""

from __future__ import annotations

from streambatch.core.bisect import Bisection
from streambatch.core.errors import RetryableError
from streambatch.core.retry import AttemptsUsedUpError, Random, RetryPolicy
from streambatch.core.types import FloatArray


class Trial:
    """Call the model with `span` once `wait_seconds` have passed, until `span` is None.

    bisection: what became of which rows; None while nothing failed, and `scores` are of all rows then.
    retries: calls that were tried again. retry_seconds: time in attempts that failed in passing and in the waits.
    """

    __slots__ = ("_failures", "_policy", "_random", "_rows", "_started", "bisection", "retries", "retry_seconds",
                 "scores", "span", "wait_seconds")  # fmt: skip

    def __init__(self, rows: int, policy: RetryPolicy, random: Random) -> None:
        self.bisection: Bisection[Exception] | None = None
        self.scores: FloatArray | None = None
        self.span = slice(0, rows) if rows else None
        self.wait_seconds = self.retry_seconds = 0.0
        self.retries = self._failures = 0
        self._rows, self._policy, self._random, self._started = rows, policy, random, 0.0

    def started(self, now: float) -> None:
        """Learn that the call of `span` starts."""
        if self._failures:
            self.retry_seconds += now - self._started
        self._started = now

    def succeeded(self, scores: FloatArray) -> None:
        """Learn the scores of `span`."""
        if self.bisection is None:
            self.scores, self.span = scores, None
        else:
            self.bisection.succeeded(scores)
            self._go_on(self.bisection)

    def failed(self, error: Exception, now: float) -> None:
        """Learn that the call of `span` failed."""
        if not isinstance(error, RetryableError):
            self._bisected().failed(error)
            self._go_on(self._bisected())
            return
        self._failures += 1
        if not self._policy.is_used_up(self._failures):
            self.retries += 1
            self.wait_seconds = self._policy.wait_seconds(self._failures, self._random)
            return
        self.retry_seconds += now - self._started
        self._bisected().given_up(AttemptsUsedUpError(error, self._failures))
        self._go_on(self._bisected())

    def _bisected(self) -> Bisection[Exception]:
        """Return the bisection, of all rows at first."""
        if self.bisection is None:
            self.bisection = Bisection(self._rows)
            self.bisection.next_span()
        return self.bisection

    def _go_on(self, bisection: Bisection[Exception]) -> None:
        self.span = bisection.next_span()
        self._failures, self.wait_seconds = 0, 0.0
