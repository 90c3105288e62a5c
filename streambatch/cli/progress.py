"""A progress line for a running pipeline: records in, scored and dead, rate, latency, and the fill of the queue."""

from __future__ import annotations

from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

from streambatch.core.units import format_duration

if TYPE_CHECKING:
    from streambatch.core.report import Snapshot

RATE_SECONDS = 5.0
"""Time that the rate covers. Records count as scored once they are synced, many at a time: less would show bursts."""


class Figures(NamedTuple):
    """The figures of one moment. taken_at: monotonic seconds; fill: share of the queue in use; p99: seconds."""

    taken_at: float
    received: int
    scored: int
    dead: int
    fill: float
    p99: float

    @property
    def settled(self) -> int:
        return self.scored + self.dead

    def describe(self, rate: float) -> str:
        """Return counts, rate and latency as text. rate: records per second."""
        return (
            f"{self.received:,} in  {self.scored:,} scored  {self.dead:,} dead  {rate:,.0f}/s  "
            f"p99 {format_duration(self.p99)}"
        )


class Rate:
    """Records settled per second over the last `seconds`."""

    def __init__(self, seconds: float = RATE_SECONDS) -> None:
        self._seconds = seconds
        self._settled: deque[tuple[float, int]] = deque()

    def at(self, figures: Figures) -> float:
        """Add the figures of a later moment and return the rate at it."""
        now, samples = figures.taken_at, self._settled
        samples.append((now, figures.settled))
        # The newest sample is never older than itself, so the deque is not empty.
        while samples[0][0] < now - self._seconds:
            samples.popleft()
        seconds = now - samples[0][0]
        return (figures.settled - samples[0][1]) / seconds if seconds else 0.0


class ProgressBar:
    """A line at the bottom of the terminal on stderr, whose bar is the queue. Log lines appear above it."""

    def __init__(self, pipeline: str, console: Console | None = None) -> None:
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            TextColumn("{task.fields[counts]}"),
            TextColumn("queue"),
            BarColumn(bar_width=10),
            console=console or Console(stderr=True),
            auto_refresh=False,
            transient=True,
        )
        self._task = self._bar.add_task(pipeline, total=1.0, counts="")
        self._rate = Rate()

    def __enter__(self) -> None:
        self._bar.start()

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):
            # A terminal that was closed can't be restored.
            self._bar.stop()

    def update(self, snapshot: Snapshot) -> None:
        """Show a later snapshot."""
        self.show(figures_of(snapshot))

    def show(self, figures: Figures) -> None:
        """Show the figures of a later moment."""
        counts = figures.describe(self._rate.at(figures))
        with suppress(OSError):  # a closed terminal must not end the pipeline
            self._bar.update(self._task, completed=figures.fill, counts=counts, refresh=True)


def figures_of(snapshot: Snapshot) -> Figures:
    """Return the figures that are shown of a snapshot."""
    totals = snapshot.totals
    return Figures(
        taken_at=snapshot.taken_at,
        received=totals.received + totals.recovered,
        scored=totals.scored,
        dead=totals.dead_lettered,
        fill=snapshot.reading.queue.records / snapshot.reading.queue.capacity_records,
        p99=snapshot.delivering.latency["p99"],
    )
