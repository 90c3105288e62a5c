"""A pipeline's snapshot as JSON for `/status` and `/healthz`, with ages and dates in place of monotonic times."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import pairwise
from math import isinf
from typing import Any

from streambatch.core.report import Counts, Snapshot
from streambatch.observe import MetricsObserver
from streambatch.observe.batch_log import LATENCY, OF_BATCH, OF_CHUNK, BatchLog
from streambatch.observe.observer import SourceCounts


def status_of(snapshot: Snapshot) -> dict[str, Any]:
    """Return the whole snapshot, ready for JSON."""
    return {
        "pipeline": snapshot.pipeline,
        "run": snapshot.run_id,
        "state": snapshot.state,
        "ready": snapshot.is_ready,
        "not_ready": snapshot.not_ready,
        "started_at": date_of(snapshot.started_at_wall),
        "uptime_seconds": snapshot.uptime_seconds,
        "records": _counts(snapshot.totals),
        "sources": {name: _counts(counts) for name, counts in snapshot.sources.items()},
        "dead_letters": [
            {"stage": stage, "reason": reason, "records": records}
            for (stage, reason), records in sorted(snapshot.delivering.dead_letters.items())
        ],
        "batches": snapshot.cutting.batches,
        "inflight_batches": snapshot.cutting.inflight_batches,
        "workers": snapshot.cutting.workers,
        "queue": _queue(snapshot),
        "memory": {"bytes": snapshot.memory_used, "capacity_bytes": snapshot.memory_capacity},
        "latency_seconds": snapshot.delivering.latency,
        "drivers": drivers_of(snapshot),
        "last_written_at": date_of(snapshot.delivering.last_written_wall),
        "last_synced_at": date_of(snapshot.delivering.last_synced_wall),
    }


def work_of(snapshot: Snapshot, counting: MetricsObserver) -> dict[str, Any]:
    """Return counters since the start; the difference of two statuses tells how hard a pipeline works.

    latency_parts: seconds that the written records spent in each part of their way, summed over records.
    latency_buckets: number of records by the upper bound of their latency in seconds; each record counts once.
    """
    batches = counting.batches
    # Batches are folded in bulk, so that the last ones are counted only after this.
    batches.fold()
    return {
        "sources": {name: _source(counts, counting.sources[name]) for name, counts in snapshot.sources.items()},
        "busy_seconds": batches.busy(),
        "batch": {"count": int(batches.histograms.records.sampled()[0][-1][1]), "records": batches.batched},
        "latency_parts": _latency_parts(batches),
        "latency_buckets": _latency_buckets(batches),
        "syncs": _syncs(counting),
    }


def drivers_of(snapshot: Snapshot) -> dict[str, Any]:
    """Return the seconds since each driver last turned, and what it waits for if it waits by design."""
    return {
        name: {"seconds_since_turn": snapshot.taken_at - driver.turned_at, "parked": driver.parked}
        for name, driver in snapshot.drivers.items()
    }


def date_of(wall: float) -> str:
    """Return seconds since the epoch as a date and time in UTC."""
    return datetime.fromtimestamp(wall, UTC).isoformat(timespec="milliseconds")


def _counts(counts: Counts) -> dict[str, Any]:
    return {
        **counts.as_records(),
        "dropped_by_reason": counts.dropped,
        "refused_by_reason": counts.refused,
        "imbalance": counts.imbalance,
    }


def _source(counts: Counts, events: SourceCounts) -> dict[str, Any]:
    return {
        **_counts(counts),
        "bytes": events.size,
        "blocked_seconds": events.blocked_seconds,
        "connections": events.opened - events.closed,
    }


def _latency_parts(batches: BatchLog) -> dict[str, Any]:
    seconds = {}
    for parts, buckets in ((OF_CHUNK, batches.histograms.of_chunks), (OF_BATCH, batches.histograms.of_batches)):
        for at, (name, label) in enumerate(parts):
            part = label if name == "stage_duration_seconds" else f"wait_{label}"
            seconds[part] = buckets.sampled(at)[1]
    return {"records": int(batches.histograms.latency.sampled()[0][-1][1]), "seconds": seconds}


def _latency_buckets(batches: BatchLog) -> dict[str, int]:
    cumulated = [int(count) for _, count in batches.histograms.latency.sampled()[0]]
    counts = [now - before for before, now in pairwise([0, *cumulated])]
    counts[-2] += counts.pop()  # an hour or more is an hour
    return {f"{bound:.3g}": count for bound, count in zip(LATENCY, counts, strict=True) if count}


def _syncs(counting: MetricsObserver) -> dict[str, Any]:
    counts, seconds = counting.checkpoint_duration.sampled()
    return {"count": int(counts[-1][1]), "failed": counting.checkpoints["failed"], "seconds": seconds}


def _queue(snapshot: Snapshot) -> dict[str, Any]:
    queue = snapshot.reading.queue
    return {
        "records": queue.records,
        "bytes": queue.size,
        "capacity_records": queue.capacity_records,
        "capacity_bytes": queue.capacity_size,
        "oldest_seconds": None if isinf(queue.oldest_arrival) else snapshot.taken_at - queue.oldest_arrival,
    }
