"""Where a run stands, and why it is not ready."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from datetime import UTC, datetime

import anyio

from streambatch.core.clock import Clock
from streambatch.core.events import Observer, PipelineState

TRANSITIONS: Mapping[PipelineState, tuple[PipelineState, ...]] = {
    # Outputs and state are being opened; sources are not read yet.
    "starting": ("running", "draining", "stopped", "failed"),
    # Sources are read. Left at the end of the input, or when a stop is asked for.
    "running": ("draining", "stopped", "failed"),
    # Nothing more is read; what was is scored, written and acked.
    "draining": ("stopped", "failed"),
    # The run is over: its input ended, it was stopped, gracefully or hard, or it was cancelled.
    "stopped": (),
    # The run is over: an error ended it, which is in its report.
    "failed": (),
}
"""The states of a run, and those that each may turn into."""


class Lifecycle:
    """The state of one run, and since when it is at work."""

    def __init__(self, clock: Clock, observer: Observer) -> None:
        self._clock, self._observer = clock, observer
        self.state: PipelineState = "starting"
        self.has_begun = False
        self.ended = anyio.Event()
        """Set when the run is over and has its report."""
        self.began_at, self.began_wall = clock.monotonic(), clock.wall()

    def begin(self) -> None:
        """Count the time from now."""
        self.has_begun = True
        self.began_at, self.began_wall = self._clock.monotonic(), self._clock.wall()

    def enter(self, state: PipelineState) -> None:
        """Turn into another state, and tell the observer; nothing happens if it is the same. Raises ValueError for one
        that can't follow."""
        if state == self.state:
            return
        if state not in TRANSITIONS[self.state]:
            raise ValueError(f"a run that is {self.state} can't be {state}")
        self.state = state
        self._observer.state_changed(state)

    def end(self, state: PipelineState) -> None:
        """Turn into the last state."""
        self.enter(state)
        self.ended.set()


class SourceFailures(Observer):
    """Which sources cannot be read for now."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._failures: dict[str, tuple[float, BaseException]] = {}

    def source_failed(self, source: str, error: BaseException) -> None:
        """Note since when a source can't be read, and why."""
        self._failures[source] = (self._clock.monotonic(), error)

    def source_recovered(self, source: str) -> None:
        """Note that it can be read again."""
        self._failures.pop(source, None)

    def reasons(self, now: float) -> list[str]:
        """Return why sources can't be read, and for how long."""
        return [f"{error}; held for {now - since:.0f} s" for since, error in self._failures.values()]


def new_run_id(clock: Clock) -> str:
    """Return an id that sorts by the time of the start and is no other run's."""
    started = datetime.fromtimestamp(clock.wall(), UTC)
    # Several runs may start in one second.
    return f"{started:%Y%m%dT%H%M%S}-{secrets.token_hex(3)}"
