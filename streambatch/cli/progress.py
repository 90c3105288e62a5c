"""The progress bar: records in, scored and dead, the rate, the latency, and how full the queue is."""

from collections import deque

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

from streambatch.state.report import Snapshot
from streambatch.units import format_duration

RATE_SECONDS = 5.0
"""Time over which the rate is taken: records count as scored once they are synced, many at a time."""


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
        self._settled: deque[tuple[float, int]] = deque()

    def __enter__(self) -> None:
        self._bar.start()

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def update(self, snapshot: Snapshot) -> None:
        """Show a newer snapshot."""
        rate = self._rate(snapshot.taken_at, snapshot.totals.scored + snapshot.totals.dead_lettered)
        fill = snapshot.queue_records / snapshot.queue_capacity_records
        counts = describe(snapshot, rate)
        self._bar.update(self._task, completed=fill, counts=counts, refresh=True)

    def _rate(self, now: float, settled: int) -> float:
        samples = self._settled
        samples.append((now, settled))
        while samples[0][0] < now - RATE_SECONDS:
            samples.popleft()
        seconds = now - samples[0][0]
        return (settled - samples[0][1]) / seconds if seconds else 0.0


def describe(snapshot: Snapshot, rate: float) -> str:
    """Return counts, rate and latency in words. rate: records per second."""
    totals = snapshot.totals
    return (
        f"{totals.received + totals.recovered:,} in  {totals.scored:,} scored  {totals.dead_lettered:,} dead  "
        f"{rate:,.0f}/s  p99 {format_duration(snapshot.latency['p99'])}"
    )
