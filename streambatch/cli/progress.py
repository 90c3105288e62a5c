"""Progress while a pipeline runs: records in, scored and dead, the rate, the latency, and how full the queue is."""

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
"""Time over which the rate is taken: records count as scored once they are synced, many at a time."""


class Figures(NamedTuple):
    """What is shown of one moment. taken_at: monotonic seconds; fill: share of the queue in use; p99: seconds."""

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
        """Return counts, rate and latency in words. rate: records per second."""
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
        """Add a newer moment and return the rate there."""
        now, samples = figures.taken_at, self._settled
        samples.append((now, figures.settled))
        while samples[0][0] < now - self._seconds:
            samples.popleft()
        seconds = now - samples[0][0]
        return (figures.settled - samples[0][1]) / seconds if seconds else 0.0


class ProgressBar:
    """A line at the bottom of the terminal on stderr; the bar is the queue. Log lines pass above it."""

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
            self._bar.stop()

    def update(self, snapshot: Snapshot) -> None:
        """Show a newer snapshot."""
        self.show(figures_of(snapshot))

    def show(self, figures: Figures) -> None:
        """Show a newer moment."""
        counts = figures.describe(self._rate.at(figures))
        with suppress(OSError):  # the terminal is gone: no reason to end what runs
            self._bar.update(self._task, completed=figures.fill, counts=counts, refresh=True)


def figures_of(snapshot: Snapshot) -> Figures:
    """Return what is shown of a snapshot."""
    totals = snapshot.totals
    return Figures(
        taken_at=snapshot.taken_at,
        received=totals.received + totals.recovered,
        scored=totals.scored,
        dead=totals.dead_lettered,
        fill=snapshot.queue_records / snapshot.queue_capacity_records,
        p99=snapshot.latency["p99"],
    )
