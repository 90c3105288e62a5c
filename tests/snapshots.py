"""A pipeline that is nothing but its snapshot, for tests of what looks at pipelines from outside."""

from __future__ import annotations

from math import inf
from typing import Any

from msgspec.structs import replace

from streambatch.core.batches import TRIGGERS
from streambatch.core.report import (
    Counts,
    CuttingStatus,
    DeliveringStatus,
    DriverState,
    Quantiles,
    QueueStatus,
    ReadingStatus,
    Snapshot,
)

STAGES = ("reading", "cutting", "delivering")

QUIET = Snapshot(
    pipeline="rides",
    run_id="20260102T030405-abcdef",
    state="running",
    started_at_wall=1_700_000_000.0,
    taken_at=100.0,
    uptime_seconds=40.0,
    not_ready=[],
    memory_used=0,
    memory_capacity=256 << 20,
    reading=ReadingStatus(
        queue=QueueStatus(records=0, size=0, capacity_records=65536, capacity_size=64 << 20, oldest_arrival=inf),
    ),
    cutting=CuttingStatus(
        batches=dict.fromkeys(TRIGGERS, 0),
        inflight_batches=0,
        target_records=512,
        target_wait=0.05,
        workers=1,
        worker_restarts=0,
        drivers={name: DriverState(100.0, "input") for name in ("batch", "score")},
    ),
    delivering=DeliveringStatus(
        sources={"rides_in": Counts()},
        dead_letters={},
        latency=Quantiles().as_dict(),
        last_synced_wall=1_700_000_001.0,
        last_written_wall=1_700_000_002.0,
        drivers={"sink": DriverState(100.0, "input")},
    ),
)
"""Running, with nothing to do."""


def snapshot_of(**changes: Any) -> Snapshot:
    """Return QUIET with changes of its own fields, of its stages' fields, and of its queue's, which begin with
    `queue_`. `drivers` are all there are."""
    if "drivers" in changes:
        drivers = changes.pop("drivers")
        changes |= {"cutting": replace(QUIET.cutting, drivers=drivers)}
        changes |= {"delivering": replace(QUIET.delivering, drivers={})}
    snapshot = QUIET
    for name, value in changes.items():
        snapshot = _changed(snapshot, name, value)
    return snapshot


def _changed(snapshot: Snapshot, name: str, value: Any) -> Snapshot:
    if name in snapshot.__struct_fields__:
        return replace(snapshot, **{name: value})
    if name.startswith("queue_"):
        queue = replace(snapshot.reading.queue, **{name.removeprefix("queue_"): value})
        return replace(snapshot, reading=replace(snapshot.reading, queue=queue))
    [stage] = [each for each in STAGES if name in getattr(snapshot, each).__struct_fields__]
    return replace(snapshot, **{stage: replace(getattr(snapshot, stage), **{name: value})})


class NamedSink:
    def __init__(self, name: str) -> None:
        self.name = name


class FakePipeline:
    """Answers `snapshot` with whatever `now` holds."""

    def __init__(self, now: Snapshot = QUIET) -> None:
        self.now = now
        self.name = now.pipeline
        self.sink = NamedSink("scores")
        self.snapshots = 0

    def snapshot(self) -> Snapshot:
        self.snapshots += 1
        return self.now
