"""The view of a pipeline that `top` and the live page show, made from its statuses as they come. Pure: no clock, no IO.

A view is a dict that JSON can hold:

    is_up           whether the last status came; everything below is from the last one that did
    down            None, or {"error": text, "since": wall seconds}
    pipeline, run, version, state, ready, not_ready, uptime_seconds, started_at, model, config_digest, settings:
                    as in the status; None before the first
    at              wall seconds of the last status
    seconds         length of the time that rates, shares and latency cover: about the last RATE_SECONDS
    rates           per second: {"received", "recovered", "scored", "dead_lettered", "dropped", "refused", "bytes",
                    "batches"}
    records         counts since the start, as in the status
    latency_seconds {"p50", "p95", "p99"}, None each while no record was written
    latency_parts   [{"part": text, "seconds": mean per record, "share": 0 to 1}], in the order a record passes them
    stages          [{"stage": text, "workers": count, "busy": share of their time, 0 to 1}]
    queue           {"records", "bytes", "capacity_records", "capacity_bytes", "oldest_seconds", "fill": 0 to 1}
    memory          {"bytes", "capacity_bytes", "fill"}
    batch           {"mean_records", "max_records", "fill": mean / max, "triggers": {trigger: share of the batches}}
    process         {"cores": used, "cpus": there are, "rss_bytes", "pid"}
    verdict         None, or {"stage", "sentence", "knob", "evidence"}: see ops/verdict.py
    sources         {name: as in the status}
    dead_letters, errors, runs: as in the status; the newest first
    history         {"at", "received", "scored", "dead_lettered", "p99", "queue_fill", "cores"}: lists of one length,
                    the oldest first, at most HISTORY_POINTS; None in them where nothing was known

Before two statuses of one run came, rates are 0 and shares empty.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from streambatch.ops.load import WORKER_STAGES, Load, Status, load_between, queue_fill

View = dict[str, Any]
RATE_SECONDS = 5.0
"""Time that rates cover. Records count as scored once they are synced, many at a time: less would show bursts."""
HISTORY_POINTS = 120
_SHOWN_AS_THEY_ARE = (
    "pipeline", "run", "version", "state", "ready", "not_ready", "uptime_seconds", "started_at", "model",
    "config_digest", "settings",
)  # fmt: skip
_HISTORIES = ("at", "received", "scored", "dead_lettered", "p99", "queue_fill", "cores")
_RATES = ("received", "recovered", "scored", "dead_lettered", "dropped", "refused", "bytes", "batches")


class LiveView:
    """The view of one pipeline. Call `update` with each status, `lost` for each that didn't come."""

    def __init__(self) -> None:
        self._statuses: deque[Status] = deque()
        self._history: dict[str, deque[float | None]] = {name: deque(maxlen=HISTORY_POINTS) for name in _HISTORIES}
        self._load: Load | None = None
        self._at: float | None = None
        self._down: dict[str, Any] | None = None

    @property
    def load(self) -> Load | None:
        """The load over about the last RATE_SECONDS; None before two statuses of one run came."""
        return self._load

    def update(self, status: Status, now: float) -> None:
        """Add a status. now: wall seconds."""
        statuses = self._statuses
        if statuses and statuses[-1]["run"] != status["run"]:
            statuses.clear()  # counters start again with each run
        statuses.append(status)
        # One status older than RATE_SECONDS is kept, so that the rates cover at least that time.
        while len(statuses) > 2 and statuses[1]["uptime_seconds"] <= status["uptime_seconds"] - RATE_SECONDS:
            statuses.popleft()
        self._load = load_between(statuses[0], status)
        self._at, self._down = now, None
        self._remember(now, self._load, queue_fill(status))

    def lost(self, error: str, now: float) -> None:
        """Record that no status came, and why. now: wall seconds."""
        since = self._down["since"] if self._down is not None else now
        self._down = {"error": error, "since": since}
        # A gap in the history shows that the daemon was down, where zeros would show that it did nothing.
        self._remember(now, None, None)

    def view(self) -> View:
        """Return the view; the module's docstring describes its shape."""
        status: Status = self._statuses[-1] if self._statuses else {}
        load = self._load
        view: View = {"is_up": self._down is None and bool(status), "down": self._down, "at": self._at}
        view |= {name: status.get(name) for name in _SHOWN_AS_THEY_ARE}
        view["seconds"] = load.seconds if load else 0.0
        view["rates"] = {name: load.rates[name] if load else 0.0 for name in _RATES}
        view["records"] = status.get("records", {})
        view["latency_seconds"] = {name: load.latency.get(name) if load else None for name in ("p50", "p95", "p99")}
        view["latency_parts"] = _parts(load)
        view["stages"] = _stages(load)
        view["queue"] = {**status["queue"], "fill": queue_fill(status)} if status else {}
        view["memory"] = _memory(status)
        view["batch"] = _batch(load)
        process = status.get("process", {})
        view["process"] = {
            "cores": load.cores if load else 0.0, **{key: process.get(key) for key in ("cpus", "rss_bytes", "pid")},
        }  # fmt: skip
        view["verdict"] = status.get("verdict")
        view["sources"] = status.get("sources", {})
        view["dead_letters"] = status.get("recent_dead_letters", [])
        view["errors"] = status.get("recent_errors", [])
        view["runs"] = status.get("runs", [])
        view["history"] = {name: list(values) for name, values in self._history.items()}
        return view

    def _remember(self, now: float, load: Load | None, fill: float | None) -> None:
        point: dict[str, float | None] = {"at": now, "queue_fill": fill}
        if load is not None:
            point |= {name: load.rates[name] for name in ("received", "scored", "dead_lettered")}
            point |= {"p99": load.latency.get("p99"), "cores": load.cores}
        for name, values in self._history.items():
            values.append(point.get(name))


def _parts(load: Load | None) -> list[dict[str, Any]]:
    if load is None:
        return []
    total = sum(load.parts.values())
    return [
        {"part": part, "seconds": seconds, "share": seconds / total if total else 0.0}
        for part, seconds in load.parts.items()
    ]


def _stages(load: Load | None) -> list[dict[str, Any]]:
    if load is None:
        return []
    workers = {**dict.fromkeys(WORKER_STAGES, load.workers), "sink": 1}
    return [
        {"stage": stage, "workers": count, "busy": min(1.0, load.busy[stage] / count)}
        for stage, count in workers.items()
    ]


def _memory(status: Status) -> dict[str, Any]:
    if not status:
        return {}
    memory = status["memory"]
    return {**memory, "fill": memory["bytes"] / memory["capacity_bytes"]}


def _batch(load: Load | None) -> dict[str, Any]:
    if load is None:
        return {}
    max_records = load.settings["batch"]["max_records"]
    closed = sum(load.triggers.values())
    return {
        "mean_records": load.mean_records,
        "max_records": max_records,
        "fill": load.mean_records / max_records,
        "triggers": {trigger: count / closed if closed else 0.0 for trigger, count in load.triggers.items()},
    }
