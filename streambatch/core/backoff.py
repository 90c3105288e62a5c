"""When to try again what failed for now. Pure: failures and successes in, seconds to wait out.

The wait is drawn from 0 to a bound that doubles with each failure in a row ("full jitter"), so that many who lost the
same server don't all come back at once. Who asks for more time gets it, and the draw on top.
"""

from __future__ import annotations

from collections.abc import Callable

FIRST_SECONDS = 0.1
LONGEST_SECONDS = 30.0
"""The bound after one failure, and the one that it never goes beyond."""
ASKED_SECONDS_MAX = 300.0
"""How long another side is left alone at most, whatever it asks for."""


class Backoff:
    """Waits between tries of one thing.

    draw: returns a number from 0 up to 1, such as `random.random`.
    """

    def __init__(self, draw: Callable[[], float]) -> None:
        self._draw = draw
        self._bound = FIRST_SECONDS

    def failed(self, retry_after: float | None = None) -> float:
        """Return the seconds to wait before the next try, no less than `retry_after` within reason."""
        wait = min(max(0.0, retry_after or 0.0), ASKED_SECONDS_MAX) + self._draw() * self._bound
        self._bound = min(2 * self._bound, LONGEST_SECONDS)
        return wait

    def succeeded(self) -> None:
        """Start over: the next failure is the first."""
        self._bound = FIRST_SECONDS
