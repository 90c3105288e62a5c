"""A pipeline's snapshot as `/status` and `/healthz` show it: no monotonic clock, ages and dates instead."""

from __future__ import annotations

from datetime import UTC, datetime
from math import isinf
from typing import Any

from streambatch.state.report import Counts, Snapshot


def status_of(snapshot: Snapshot) -> dict[str, Any]:
    """Return the whole snapshot, ready for JSON."""
    return {
        "pipeline": snapshot.pipeline,
        "run": snapshot.run_id,
        "state": snapshot.state,
        "ready": snapshot.is_ready,
        "not_ready": snapshot.not_ready,
        "started_at": _date(snapshot.started_at_wall),
        "uptime_seconds": snapshot.uptime_seconds,
        "records": _counts(snapshot.totals),
        "sources": {name: _counts(counts) for name, counts in snapshot.sources.items()},
        "dead_letters": [
            {"stage": stage, "reason": reason, "records": records}
            for (stage, reason), records in sorted(snapshot.dead_letters.items())
        ],
        "batches": snapshot.batches,
        "inflight_batches": snapshot.inflight_batches,
        "workers": snapshot.workers,
        "queue": _queue(snapshot),
        "memory": {"bytes": snapshot.memory_used, "capacity_bytes": snapshot.memory_capacity},
        "latency_seconds": snapshot.latency,
        "drivers": drivers_of(snapshot),
        "last_written_at": _date(snapshot.last_written_wall),
        "last_synced_at": _date(snapshot.last_synced_wall),
    }


def drivers_of(snapshot: Snapshot) -> dict[str, Any]:
    """Return how long ago each driver turned, and what it waits for, if it does by design."""
    return {
        name: {"seconds_since_turn": snapshot.taken_at - driver.turned_at, "parked": driver.parked}
        for name, driver in snapshot.drivers.items()
    }


def _counts(counts: Counts) -> dict[str, Any]:
    return {
        **counts.as_records(),
        "dropped_by_reason": counts.dropped,
        "refused_by_reason": counts.refused,
        "imbalance": counts.imbalance,
    }


def _queue(snapshot: Snapshot) -> dict[str, Any]:
    oldest = snapshot.queue_oldest_arrival
    return {
        "records": snapshot.queue_records,
        "bytes": snapshot.queue_bytes,
        "capacity_records": snapshot.queue_capacity_records,
        "capacity_bytes": snapshot.queue_capacity_bytes,
        "oldest_seconds": None if isinf(oldest) else snapshot.taken_at - oldest,
    }


def _date(wall: float) -> str:
    return datetime.fromtimestamp(wall, UTC).isoformat(timespec="milliseconds")
