"""Counts of records, the snapshot of a running pipeline, and the report of a run that has ended."""

from __future__ import annotations

from collections.abc import Iterable
from math import exp, log
from typing import Any, Literal

import msgspec

from streambatch.core.backlog import Backlog
from streambatch.core.checkpoints import resolved_early
from streambatch.core.chunks import Reason
from streambatch.core.events import PipelineState
from streambatch.core.outcomes import Stage
from streambatch.core.spooling import SpoolStatus

Ended = Literal["input_ended", "stopped", "failed"]
STUCK_SECONDS = 30.0
"""A driver that neither turned nor waits by design for so long is stuck."""


@resolved_early
class Counts(msgspec.Struct):
    """Source records by what became of them; each is counted on its own."""

    received: int = 0
    recovered: int = 0
    scored: int = 0
    dead_lettered: int = 0
    # msgspec copies an empty default for each instance.
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
        # A microsecond is in bucket -1388. All that is shorter counts in one below it, also 0, which has no logarithm.
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
                # Of times below a second, a bucket's number stands for its upper edge, which may lie above everything
                # in it.
                return min(exp(bucket * self._STEP), self.largest)
        return 0.0

    def as_dict(self) -> dict[str, float]:
        """Return p50, p95, p99 and max in seconds."""
        return {"p50": self.at(0.5), "p95": self.at(0.95), "p99": self.at(0.99), "max": self.largest}


class DriverState(msgspec.Struct, frozen=True):
    """When a driver last turned (monotonic seconds), and what it waits for, if it waits by design."""

    turned_at: float
    parked: str | None


class QueueStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The queue of records that wait to be batched."""

    records: int
    size: int
    """Bytes."""
    capacity_records: int
    capacity_size: int
    oldest_arrival: float
    """When the oldest of them arrived; infinity when nothing waits."""


class ReadingStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The sources and what they put."""

    queue: QueueStatus
    spools: dict[str, SpoolStatus] = {}
    """By source, for those with a spool."""
    waiting_seconds: dict[str, float] = {}
    """By source, how long the waits for room that are under way have taken, together."""
    backlogs: dict[str, Backlog] = {}
    """By source, for those that can tell."""


class CuttingStatus(msgspec.Struct, frozen=True, kw_only=True):
    """Batches on their way from the queue through the workers."""

    batches: dict[str, int]
    """Cut since the start, by trigger."""
    inflight_batches: int
    """Cut and not yet written."""
    target_records: int
    target_wait: float
    workers: int
    worker_restarts: int
    drivers: dict[str, DriverState]


class DeliveringStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What became of the records, and how the outputs fare."""

    sources: dict[str, Counts]
    dead_letters: dict[tuple[Stage, Reason], int]
    latency: dict[str, float]
    """From arrival to written, in seconds, by quantile."""
    last_synced_wall: float
    last_written_wall: float
    drivers: dict[str, DriverState]


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """A pipeline at one moment: of its run as a whole, and of each stage, taken at once on its event loop.

    Times are monotonic seconds unless they say wall.
    """

    pipeline: str
    run_id: str
    state: PipelineState
    started_at_wall: float
    taken_at: float
    uptime_seconds: float
    not_ready: list[str]
    """Why the pipeline is not ready; empty when it is."""
    memory_used: int
    memory_capacity: int
    reading: ReadingStatus
    cutting: CuttingStatus
    delivering: DeliveringStatus

    @property
    def is_ready(self) -> bool:
        return not self.not_ready

    @property
    def sources(self) -> dict[str, Counts]:
        """What became of the records of each source."""
        return self.delivering.sources

    @property
    def totals(self) -> Counts:
        """What became of the records of all sources together."""
        return total_of(self.sources.values())

    @property
    def drivers(self) -> dict[str, DriverState]:
        """The loops that take batches, score them and write them."""
        return {**self.cutting.drivers, **self.delivering.drivers}

    def stuck(self, limit_seconds: float) -> list[str]:
        """Return the drivers that neither turned nor are parked for so long."""
        return [
            name
            for name, driver in self.drivers.items()
            if driver.parked is None and self.taken_at - driver.turned_at > limit_seconds
        ]


class RunReport(msgspec.Struct, frozen=True):
    """The summary of a run, from start to stop."""

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
