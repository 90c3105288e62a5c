"""When a call of the model that failed in passing is tried again. Pure: it decides, and never waits.

The wait before a retry is drawn evenly between nothing and a bound that doubles with every failure (full jitter, see
M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015), so that workers don't come back together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from streambatch.core.errors import RetryableError, StreambatchError
from streambatch.core.units import format_duration

Random = Callable[[], float]
"""Returns a number between 0 and 1, as `random.random` does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How often a call is tried in all, and how long to wait between: seconds."""

    attempts: int
    first_seconds: float = 0.1
    most_seconds: float = 10.0

    def wait_seconds(self, failures: int, random: Random) -> float | None:
        """Return how long to wait after so many failures; None when the call is given up."""
        if failures >= self.attempts:
            return None
        # As a power it would overflow after a thousand failures.
        bound = self.first_seconds * 2.0 ** min(failures - 1, 64)
        return random() * min(bound, self.most_seconds)


ONCE = RetryPolicy(attempts=1)
"""No retries."""


class TimedOutError(RetryableError):
    """A call of the model took longer than it may; the batch may be tried again, but is not halved."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        super().__init__(f"timed out after {format_duration(seconds)}")


class AttemptsUsedUpError(StreambatchError):
    """A call failed in passing every time it was tried."""

    def __init__(self, cause: Exception, attempts: int) -> None:
        self.cause, self.attempts = cause, attempts
        super().__init__(f"{told(cause)}, {attempts} attempt{'' if attempts == 1 else 's'}")


def told(error: BaseException) -> str:
    """Return an error as a dead letter tells it."""
    if isinstance(error, TimedOutError | AttemptsUsedUpError):
        return str(error)
    return f"{type(error).__name__}: {error}"
