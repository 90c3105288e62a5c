"""Compute how hard a pipeline worked between two of its statuses (the JSON of `/status`). Pure.

Counters of a status only grow within a run, and `uptime_seconds` is the pipeline's own clock. So a difference means the
same for every client, and however late the answers came.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

Status = Mapping[str, Any]
WORKER_STAGES = ("decode", "validate", "preprocess", "score", "encode")
"""The stages of a worker, in the order a batch passes them."""


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """How hard a pipeline worked between two statuses of one run, and its settings and fill at the later one."""

    seconds: float
    rates: Mapping[str, float]
    """Records per second by count; `bytes` and `batches` per second as well."""
    latency: Mapping[str, float]
    """Seconds by quantile, of the records written in between; empty without any."""
    parts: Mapping[str, float]
    """Mean seconds per record by part of its way."""
    busy: Mapping[str, float]
    """Seconds of work per second by stage, summed over workers."""
    triggers: Mapping[str, int]
    batches: int
    mean_records: float
    workers: int
    blocked: float
    """Share of the time that the most blocked source waited for room."""
    syncing: float
    """Share of the time that checkpoints took."""
    cores: float
    """Seconds of CPU per second."""
    cpus: int
    queue_fill: float
    memory_fill: float
    inflight_batches: int
    parked: Mapping[str, str | None]
    """What each driver waits for by design, if it does."""
    settings: Mapping[str, Any]

    @property
    def working(self) -> float:
        """Share of the workers' time that batches took; 1 if no worker was ever idle."""
        return sum(self.busy[stage] for stage in WORKER_STAGES) / self.workers

    @property
    def busiest(self) -> str:
        """The stage that took most of the workers' time."""
        return max(WORKER_STAGES, key=lambda stage: self.busy[stage])


def load_between(earlier: Status, later: Status) -> Load | None:
    """Return the load between two statuses; None if they are of two runs, or of the same moment."""
    seconds = later["uptime_seconds"] - earlier["uptime_seconds"]
    if earlier["run"] != later["run"] or seconds <= 0:
        return None
    batches = later["batch"]["count"] - earlier["batch"]["count"]
    batched = later["batch"]["records"] - earlier["batch"]["records"]
    busy = _grown(earlier, later, "busy_seconds")
    process = later["process"]
    return Load(
        seconds=seconds,
        rates=_rates(earlier, later, seconds),
        latency=_quantiles(_grown(earlier, later, "latency_buckets")),
        parts=_parts(earlier["latency_parts"], later["latency_parts"]),
        busy={stage: busy.get(stage, 0.0) / seconds for stage in (*WORKER_STAGES, "sink")},
        triggers={trigger: int(count) for trigger, count in _grown(earlier, later, "batches").items()},
        batches=batches,
        mean_records=batched / batches if batches else 0.0,
        workers=later["workers"],
        blocked=max(_grown_in_sources(earlier, later, "blocked_seconds"), default=0.0) / seconds,
        syncing=(later["syncs"]["seconds"] - earlier["syncs"]["seconds"]) / seconds,
        cores=(process["cpu_seconds"] - earlier["process"]["cpu_seconds"]) / seconds,
        cpus=process["cpus"],
        queue_fill=queue_fill(later),
        memory_fill=later["memory"]["bytes"] / later["memory"]["capacity_bytes"],
        inflight_batches=later["inflight_batches"],
        parked={name: driver["parked"] for name, driver in later["drivers"].items()},
        settings=later["settings"],
    )


def queue_fill(status: Status) -> float:
    """Return the share of the queue in use, by records or by bytes, whichever is larger."""
    queue: Mapping[str, float] = status["queue"]
    return max(queue["records"] / queue["capacity_records"], queue["bytes"] / queue["capacity_bytes"])


def _rates(earlier: Status, later: Status, seconds: float) -> dict[str, float]:
    before, now = earlier["records"], later["records"]
    counts = ("received", "recovered", "scored", "dead_lettered", "dropped", "refused")
    rates = {name: (now[name] - before[name]) / seconds for name in counts}
    rates["bytes"] = sum(_grown_in_sources(earlier, later, "bytes")) / seconds
    rates["batches"] = (later["batch"]["count"] - earlier["batch"]["count"]) / seconds
    return rates


def _grown(earlier: Status, later: Status, key: str) -> dict[str, float]:
    """Return the growth of each number in a table."""
    before = earlier[key]
    return {name: value - before.get(name, 0) for name, value in later[key].items()}


def _grown_in_sources(earlier: Status, later: Status, key: str) -> list[float]:
    before = earlier["sources"]
    return [source[key] - before.get(name, {}).get(key, 0) for name, source in later["sources"].items()]


def _parts(before: Status, now: Status) -> dict[str, float]:
    records = now["records"] - before["records"]
    if not records:
        return {}
    return {name: (total - before["seconds"].get(name, 0.0)) / records for name, total in now["seconds"].items()}


def _quantiles(counts: Mapping[str, float]) -> dict[str, float]:
    """Return p50, p95 and p99 of records counted by the upper bound of their latency."""
    total, seen = sum(counts.values()), 0.0
    found: dict[str, float] = {}
    wanted = [("p50", 0.5), ("p95", 0.95), ("p99", 0.99)]
    for bound, count in sorted((float(bound), count) for bound, count in counts.items()):
        seen += count
        # One bucket may hold several quantiles.
        while total and wanted and seen >= wanted[0][1] * total:
            found[wanted.pop(0)[0]] = bound
    return found
