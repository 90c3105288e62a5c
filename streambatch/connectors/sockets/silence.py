"""Which connections keep silent, and for how long: pure, `now` in, decision out.

Time in which no connection could be read, since this end was busy or blocked, counts against none of them: the clock
of silence stands still meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeVar

Connection = TypeVar("Connection")


class Silence(Generic[Connection]):
    """The connections that are read from, the longest silent one first."""

    def __init__(self, idle_timeout: float) -> None:
        self._idle_timeout = idle_timeout
        self._busy_seconds = 0.0
        self._since: dict[Connection, float] = {}

    def begins(self, connection: Connection, now: float) -> None:
        """Start the time of a connection, or start it again: something came."""
        # Moved to the end of the dict. Neither `now` nor the time without being busy goes back, so the dict stays
        # sorted.
        self._since.pop(connection, None)
        self._since[connection] = now - self._busy_seconds

    def ends(self, connection: Connection) -> None:
        """Forget a connection: it is not read from for now."""
        del self._since[connection]

    def was_busy(self, seconds: float) -> None:
        """Count time in which no connection could be read."""
        self._busy_seconds += seconds

    def seconds_to_first_due(self, now: float) -> float | None:
        """Return how long until the first connection has been silent for too long; None if there is none."""
        for since in self._since.values():
            return max(0.0, since + self._idle_timeout - (now - self._busy_seconds))
        return None

    def due(self, now: float) -> Iterator[Connection]:
        """Yield each connection that has been silent for too long; begin or end it before the next one is asked for."""
        latest = now - self._busy_seconds - self._idle_timeout
        while self._since:
            # Looked up again each time, since the caller changes the dict between two of them.
            connection, since = next(iter(self._since.items()))
            if since > latest:
                return
            yield connection
