"""A batch's way through the model: what to call next, after which wait, and the result for each row.

Pure: results, errors and `now` in, decisions out, so that every executor decides alike.

After a call of `span` that

- succeeded: its scores are kept; on to the next span, or to the end.
- raised a passing error, with attempts left: the same span again, after a wait.
- raised a passing error, with no attempts left: the rows of the call die, without halving.
- raised any other error: the rows are halved until the guilty ones are alone.
"""

from __future__ import annotations

from streambatch.core.bisect import Bisection
from streambatch.core.errors import RetryableError
from streambatch.core.retry import AttemptsUsedUpError, Random, RetryPolicy
from streambatch.core.types import FloatArray


class Attempts:
    """The calls of the model that one batch takes.

    Call the model with `span` once `wait_seconds` have passed, until `span` is None. Each call gets `started`, then
    `succeeded` or `failed`.
    """

    __slots__ = ("_failures", "_policy", "_random", "_rows", "_started", "bisection", "retries", "retry_seconds",
                 "scores", "span", "wait_seconds")  # fmt: skip

    def __init__(self, rows: int, policy: RetryPolicy, random: Random) -> None:
        self.bisection: Bisection[Exception] | None = None
        """Which rows were scored and which died; None while nothing failed."""
        self.scores: FloatArray | None = None
        """The scores of all rows, where nothing failed."""
        self.span = slice(0, rows) if rows else None
        self.wait_seconds = 0.0
        self.retries = 0
        """Calls that were tried again."""
        self.retry_seconds = 0.0
        """Time in attempts that failed in passing, and in the waits after them."""
        self._failures = 0
        self._rows, self._policy, self._random, self._started = rows, policy, random, 0.0

    def started(self, now: float) -> None:
        """Note that the call of `span` starts."""
        if self._failures:
            # From the start of the call that failed: the call and the wait after it.
            self.retry_seconds += now - self._started
        self._started = now

    def succeeded(self, scores: FloatArray) -> None:
        """Take the scores of `span`."""
        if self.bisection is None:
            self.scores, self.span = scores, None
        else:
            self.bisection.succeeded(scores)
            self._next(self.bisection)

    def failed(self, error: Exception, now: float) -> None:
        """Decide what follows after the call of `span` failed."""
        if not isinstance(error, RetryableError):
            self._bisected().failed(error)
            self._next(self._bisected())
            return
        self._failures += 1
        if not self._policy.is_used_up(self._failures):
            self.retries += 1
            self.wait_seconds = self._policy.wait_seconds(self._failures, self._random)
            return
        self.retry_seconds += now - self._started
        # Not halved: the fault is behind the model, and smaller calls would only multiply what it has to refuse.
        self._bisected().given_up(AttemptsUsedUpError(error, self._failures))
        self._next(self._bisected())

    def _bisected(self) -> Bisection[Exception]:
        """Return the bisection; the first one has all rows as its span."""
        if self.bisection is None:
            self.bisection = Bisection(self._rows)
            self.bisection.next_span()
        return self.bisection

    def _next(self, bisection: Bisection[Exception]) -> None:
        self.span = bisection.next_span()
        # Attempts count for one span: each half gets as many as the whole batch had.
        self._failures, self.wait_seconds = 0, 0.0
