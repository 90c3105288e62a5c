"""The one clock: every reading of time in streambatch goes through it, so that tests can move time themselves."""

import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """Two readings: `monotonic` for durations and deadlines, `wall` for what people read."""

    def monotonic(self) -> float:
        """Seconds since an arbitrary moment; never goes back. May be called from any thread."""
        ...

    def wall(self) -> float:
        """Seconds since the epoch, as the machine believes it; may jump either way."""
        ...


class SystemClock:
    """The machine's own clocks."""

    monotonic = staticmethod(time.monotonic)
    wall = staticmethod(time.time)


def rfc3339(at: float) -> str:
    """Return wall seconds as people and programs read them."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
