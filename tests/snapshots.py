"""A pipeline that is nothing but its snapshot, for tests of what looks at pipelines from outside."""

from __future__ import annotations

from math import inf
from typing import Any

import msgspec

from streambatch.core.batches import TRIGGERS
from streambatch.core.report import Counts, DriverState, Quantiles, Snapshot

QUIET = Snapshot(
    pipeline="rides",
    run_id="20260102T030405-abcdef",
    state="running",
    started_at_wall=1_700_000_000.0,
    taken_at=100.0,
    uptime_seconds=40.0,
    sources={"rides_in": Counts()},
    totals=Counts(),
    dead_letters={},
    batches=dict.fromkeys(TRIGGERS, 0),
    queue_records=0,
    queue_bytes=0,
    queue_capacity_records=65536,
    queue_capacity_bytes=64 << 20,
    queue_oldest_arrival=inf,
    memory_used=0,
    memory_capacity=256 << 20,
    inflight_batches=0,
    batch_target_records=512,
    batch_target_wait=0.05,
    workers=1,
    worker_restarts=0,
    spools={},
    drivers={name: DriverState(100.0, "input") for name in ("batch", "score", "sink")},
    latency=Quantiles().as_dict(),
    not_ready=[],
    last_synced_wall=1_700_000_001.0,
    last_written_wall=1_700_000_002.0,
)
"""Running, with nothing to do."""


def snapshot_of(**changes: Any) -> Snapshot:
    """Return QUIET with changes; totals follow from the sources."""
    snapshot = msgspec.structs.replace(QUIET, **changes)
    totals = Counts()
    for counts in snapshot.sources.values():
        totals.add(counts)
    return msgspec.structs.replace(snapshot, totals=totals)


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
