"""What a pipeline says of itself: counts, a snapshot while it runs, a report when it has ended."""

from __future__ import annotations

from collections.abc import Iterable
from math import exp, log
from typing import Any, Literal

import msgspec

from streambatch.core.backlog import Backlog
from streambatch.core.chunks import Reason
from streambatch.core.durable import learned
from streambatch.core.events import State
from streambatch.core.outcomes import Stage
from streambatch.core.spooling import SpoolStatus

Ended = Literal["input_ended", "stopped", "failed"]
STUCK_SECONDS = 30.0
"""A driver that neither turned nor waits by design for so long is stuck."""


@learned
class Counts(msgspec.Struct):
    """Source records by what became of them; each is counted on its own."""

    received: int = 0
    recovered: int = 0
    scored: int = 0
    dead_lettered: int = 0
    dropped: dict[str, int] = {}
    unacked: int = 0
    refused: dict[str, int] = {}

    @property
    def imbalance(self) -> int:
        """Zero as long as every record is accounted for."""
        came = self.received + self.recovered
        return came - self.scored - self.dead_lettered - sum(self.dropped.values()) - self.unacked

    def add(self, other: Counts) -> None:
        """Add another's counts to these."""
        self.received += other.received
        self.recovered += other.recovered
        self.scored += other.scored
        self.dead_lettered += other.dead_lettered
        self.unacked += other.unacked
        for mine, theirs in ((self.dropped, other.dropped), (self.refused, other.refused)):
            for reason, count in theirs.items():
                mine[reason] = mine.get(reason, 0) + count

    def copy(self) -> Counts:
        """Return counts of their own with the same numbers."""
        return total_of([self])

    def as_records(self) -> dict[str, int]:
        """Return one number per count, as reports hold them."""
        return {
            "received": self.received,
            "recovered": self.recovered,
            "scored": self.scored,
            "dead_lettered": self.dead_lettered,
            "dropped": sum(self.dropped.values()),
            "unacked": self.unacked,
            "refused": sum(self.refused.values()),
        }


def total_of(counts: Iterable[Counts]) -> Counts:
    """Return the sum of counts, which may be changed without changing them."""
    total = Counts()
    for each in counts:
        total.add(each)
    return total


class Quantiles:
    """Latencies by quantile, to 1 % of the value: records counted in geometric buckets, whole chunks at a time."""

    _STEP = log(1.01)

    def __init__(self) -> None:
        self._buckets: dict[int, int] = {}
        self._count = 0
        self.largest = 0.0

    def add(self, seconds: float, records: int) -> None:
        """Count `records` records that took `seconds`."""
        bucket = int(log(seconds) / self._STEP) if seconds > 1e-6 else -1400
        self._buckets[bucket] = self._buckets.get(bucket, 0) + records
        self._count += records
        self.largest = max(self.largest, seconds)

    def at(self, share: float) -> float:
        """Return the latency that `share` of the records stayed within; 0 when there were none."""
        wanted, seen = share * self._count, 0
        for bucket in sorted(self._buckets):
            seen += self._buckets[bucket]
            if seen >= wanted:
                return min(exp(bucket * self._STEP), self.largest)
        return 0.0

    def as_dict(self) -> dict[str, float]:
        """Return p50, p95, p99 and max in seconds."""
        return {"p50": self.at(0.5), "p95": self.at(0.95), "p99": self.at(0.99), "max": self.largest}


class DriverState(msgspec.Struct, frozen=True):
    """When a driver last turned (monotonic seconds), and what it waits for, if it waits by design."""

    turned_at: float
    parked: str | None


class Snapshot(msgspec.Struct, frozen=True):
    """A pipeline at one moment, taken at once on its event loop. Times are monotonic seconds unless they say wall."""

    pipeline: str
    run_id: str
    state: State
    started_at_wall: float
    taken_at: float
    uptime_seconds: float
    sources: dict[str, Counts]
    totals: Counts
    dead_letters: dict[tuple[Stage, Reason], int]
    batches: dict[str, int]
    queue_records: int
    queue_bytes: int
    queue_capacity_records: int
    queue_capacity_bytes: int
    queue_oldest_arrival: float
    memory_used: int
    memory_capacity: int
    inflight_batches: int
    batch_target_records: int
    batch_target_wait: float
    workers: int
    worker_restarts: int
    spools: dict[str, SpoolStatus]
    drivers: dict[str, DriverState]
    latency: dict[str, float]
    not_ready: list[str]
    last_synced_wall: float
    last_written_wall: float
    waiting_seconds: dict[str, float] = {}
    """By source, how long the waits for room that are under way have taken, together."""
    backlogs: dict[str, Backlog] = {}
    """By source, for those that can tell."""

    @property
    def is_ready(self) -> bool:
        return not self.not_ready

    def stuck(self, limit_seconds: float) -> list[str]:
        """Return the drivers that neither turned nor are parked for so long."""
        return [
            name
            for name, driver in self.drivers.items()
            if driver.parked is None and self.taken_at - driver.turned_at > limit_seconds
        ]


class RunReport(msgspec.Struct, frozen=True):
    """What a run did, from start to stop."""

    run: str
    pipeline: str
    ended: Ended
    error: str | None
    seconds: float
    records: dict[str, int]
    batches: dict[str, int]
    records_per_second: float
    latency_seconds: dict[str, float]

    def as_dict(self) -> dict[str, Any]:
        """Return the report as DESIGN's `--report` file holds it."""
        return {name: getattr(self, name) for name in self.__struct_fields__}

    @property
    def is_complete(self) -> bool:
        """Whether no record is left in flight."""
        return self.records["unacked"] == 0
