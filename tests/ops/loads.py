"""Statuses and loads as a pipeline at work would give them, for tests of what is made of them."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import msgspec

from streambatch.ops.load import WORKER_STAGES, Load

SETTINGS: dict[str, Any] = {
    "batch": {"max_records": 512, "max_bytes": 4 << 20, "max_wait": 0.05},
    "workers": {"executor": "thread", "count": 1},
    "queue": {"max_records": 65536, "max_bytes": 64 << 20},
    "limits": {"memory": 256 << 20},
    "delivery": {"checkpoint_interval": 1.0},
    "source": {"rides_in": {"type": "file", "format": "jsonl"}},
    "sink": {"scores": {"type": "file", "format": "jsonl", "compression": "none"}},
}
IDLE = Load(
    seconds=5.0,
    rates={
        "received": 0.0, "recovered": 0.0, "scored": 0.0, "dead_lettered": 0.0, "dropped": 0.0, "refused": 0.0,
        "bytes": 0.0, "batches": 200.0,
    },
    latency={"p50": 0.01, "p95": 0.02, "p99": 0.03},
    parts={"wait_queue": 0.01, "score": 0.03},
    busy=dict.fromkeys((*WORKER_STAGES, "sink"), 0.0),
    triggers={"size": 1000, "bytes": 0, "time": 0, "flush": 0, "shutdown": 0},
    batches=1000,
    mean_records=512.0,
    workers=1,
    blocked=0.0,
    syncing=0.0,
    cores=0.1,
    cpus=4,
    queue_fill=0.0,
    memory_fill=0.1,
    inflight_batches=1,
    parked={"batch": "input", "score": "input", "sink": "input"},
    settings=SETTINGS,
)  # fmt: skip


def load_of(*, busy: dict[str, float] | None = None, settings: dict[str, Any] | None = None, **changes: Any) -> Load:
    """Return a load of an idle pipeline with changes; settings: by `section.key`."""
    changed = deepcopy(SETTINGS)
    for path, value in (settings or {}).items():
        place: Any = changed
        *sections, key = path.split(".")
        for section in sections:
            place = place[section]
        place[key] = value
    return msgspec.structs.replace(IDLE, busy={**IDLE.busy, **(busy or {})}, settings=changed, **changes)


def status_of(*, run: str = "run-1", seconds: float = 0.0, records: int = 0, **changes: Any) -> dict[str, Any]:
    """Return a status so long after the start and with so many records in and out, half of them within 10 ms."""
    counts = {"received": records, "recovered": 0, "scored": records, "dead_lettered": 0, "dropped": 0, "refused": 0}
    return {
        "pipeline": "rides", "run": run, "version": "1", "state": "running", "ready": True, "not_ready": [],
        "started_at": "2026-01-02T03:04:05.000+00:00", "uptime_seconds": seconds, "records": counts,
        "sources": {"rides_in": {**counts, "bytes": 100 * records, "blocked_seconds": 0.5 * seconds, "connections": 1}},
        "batches": {"size": records // 100, "time": 0},
        "batch": {"count": records // 100, "records": records},
        "busy_seconds": {"decode": 0.25 * seconds, "score": 0.5 * seconds, "sink": 0.1 * seconds},
        "latency_buckets": {"0.01": records // 2, "0.02": records - records // 2},
        "latency_parts": {"records": records, "seconds": {"wait_queue": 0.004 * records, "score": 0.012 * records}},
        "syncs": {"count": 1, "failed": 0, "seconds": 0.01 * seconds},
        "process": {"pid": 7, "cpu_seconds": 0.8 * seconds, "cpus": 2, "rss_bytes": 80 << 20},
        "queue": {
            "records": 100, "bytes": 10, "capacity_records": 400, "capacity_bytes": 1000, "oldest_seconds": 0.1,
        },
        "memory": {"bytes": 10, "capacity_bytes": 100}, "inflight_batches": 1, "workers": 1,
        "drivers": {"batch": {"seconds_since_turn": 0.0, "parked": "input"}},
        "model": {"format": "linear", "digest": "sha256:abcdef"}, "config_digest": "0123456789abcdef",
        "settings": SETTINGS, "verdict": None, "recent_dead_letters": [], "recent_errors": [],
        **changes,
    }  # fmt: skip
