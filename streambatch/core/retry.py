"""When to try again what failed in passing. Pure: failures in, seconds to wait out; it never waits itself.

The wait before a retry lies below a bound that doubles with every failure in a row. How much of it is drawn by chance
is the policy's `jitter`, so that many who lost the same server don't all come back at once. See M. Brooker,
"Exponential Backoff And Jitter", AWS Architecture Blog, 2015: 1.0 is its full jitter, 0.5 its equal jitter.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf

from streambatch.core.errors import RetryableError, StreambatchError
from streambatch.core.units import format_duration

Random = Callable[[], float]
"""Returns a number from 0 up to 1, as `random.random` does."""

_DOUBLINGS_MAX = 64
"""More would overflow a float after a thousand failures; no bound is that far from its limit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How often something is tried, and how long to wait between."""

    attempts: float = inf
    """Tries in all, the first included."""
    first_seconds: float = 0.1
    """The bound of the wait after one failure."""
    longest_seconds: float = 10.0
    """The bound never goes beyond this."""
    jitter: float = 1.0
    """The share of a wait that is drawn by chance: 1 draws from all up to the bound, 0 waits the bound itself."""
    asked_seconds_max: float = 0.0
    """How long the other side is left alone at most when it asks for time; the wait comes on top of what it gets."""

    def is_used_up(self, failures: int) -> bool:
        """Whether so many failures were all the tries there are."""
        return failures >= self.attempts

    def wait_seconds(self, failures: int, random: Random, asked_seconds: float = 0.0) -> float:
        """Return how long to wait after so many failures in a row, at least one. asked_seconds: by the other side."""
        bound = min(self.first_seconds * 2.0 ** min(failures - 1, _DOUBLINGS_MAX), self.longest_seconds)
        granted = min(max(0.0, asked_seconds), self.asked_seconds_max)
        # On top of what was asked for: a server asks all its clients for the same time.
        return granted + _spread(bound, self.jitter, random())


class Backoff:
    """The waits between tries of one thing."""

    __slots__ = ("_policy", "_random", "failures")

    def __init__(self, policy: RetryPolicy, random: Random) -> None:
        self.failures = 0
        """Failures in a row."""
        self._policy, self._random = policy, random

    def failed(self, asked_seconds: float = 0.0) -> float:
        """Count a failure. Returns the seconds to wait before the next try."""
        self.failures += 1
        return self._policy.wait_seconds(self.failures, self._random, asked_seconds)

    def succeeded(self) -> None:
        """Start over: the next failure is the first in a row."""
        self.failures = 0


def _spread(bound: float, jitter: float, drawn: float) -> float:
    return bound * (1.0 - jitter + jitter * drawn)


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
        super().__init__(f"{error_text(cause)}, {attempts} attempt{'' if attempts == 1 else 's'}")


def error_text(error: BaseException) -> str:
    """Return an error as a dead letter tells it."""
    if isinstance(error, TimedOutError | AttemptsUsedUpError):
        return str(error)
    return f"{type(error).__name__}: {error}"
