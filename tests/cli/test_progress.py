"""The progress bar: what it says at each moment, and that log lines pass above it."""

import io
import sys

import pytest
from rich.console import Console

from streambatch.cli.progress import ProgressBar, figures_of
from streambatch.core.report import Counts, Snapshot
from tests.snapshots import snapshot_of


def snapshot(taken_at: float = 0.0, scored: int = 0, *, queued: int = 0) -> Snapshot:
    return snapshot_of(
        taken_at=taken_at,
        uptime_seconds=taken_at,
        sources={"rides_in": Counts(received=1_234_567, recovered=1, scored=scored, dead_lettered=3)},
        queue_records=queued,
        queue_capacity_records=100,
        latency={"p50": 0.0, "p95": 0.0, "p99": 0.0123, "max": 0.0},
    )


def test_what_is_said() -> None:
    said = figures_of(snapshot(scored=1_000_000)).describe(98_765.4)
    assert said == "1,234,568 in  1,000,000 scored  3 dead  98,765/s  p99 12.3 ms"


@pytest.fixture
def terminal() -> io.StringIO:
    return io.StringIO()


def test_the_rate_follows_what_happens(terminal: io.StringIO) -> None:
    bar = ProgressBar("rides", Console(file=terminal, force_terminal=True, width=160))
    with bar:
        bar.update(snapshot(0.0, 0))
        assert "0/s" in terminal.getvalue()
        bar.update(snapshot(1.0, 1000))
        assert "1,000/s" in terminal.getvalue()
        for second in range(2, 40):
            bar.update(snapshot(float(second), 1000 + 500 * (second - 1)))
    assert " 500/s" in terminal.getvalue()


def test_log_lines_pass_above_it(terminal: io.StringIO) -> None:
    bar, before = ProgressBar("rides", Console(file=terminal, force_terminal=True, width=160)), sys.stderr
    with bar:
        bar.update(snapshot(queued=50))
        print("a log line", file=sys.stderr)
        bar.update(snapshot(1.0, 7))
    shown = terminal.getvalue()
    assert "a log line\n" in shown
    assert shown.index("a log line") < shown.index("7 scored")
    assert sys.stderr is before
