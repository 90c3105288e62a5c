"""Serve the metrics of a process on a registry that is passed in, so that two registries never collide.

All record counts of a scrape come from one snapshot of each pipeline, so that they balance in every scrape.
"""

from __future__ import annotations

import asyncio
import contextlib
import platform
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import isinf
from typing import Any, Protocol

import anyio
from prometheus_client import CollectorRegistry
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar

from streambatch.core.batches import TRIGGERS
from streambatch.core.clock import Clock, SystemClock
from streambatch.core.events import STATES
from streambatch.core.report import Snapshot
from streambatch.observe.batch_log import OF_BATCH, OF_CHUNK, BatchLog, Buckets
from streambatch.observe.catalogue import (
    CATALOGUE,
    DEAD_LETTERS,
    DROPPED,
    ERROR_TYPES,
    FILE_EVENTS,
    FILE_STATES,
    LEVELS,
    OUTCOMES,
    PREFIX,
    REFUSALS,
    REJECTED_CONNECTIONS,
    SECONDS,
    STAGES,
    Family,
)
from streambatch.observe.drift import Drift
from streambatch.observe.observer import MetricsObserver, SourceCounts
from streambatch.observe.tracing import Tracing
from streambatch.version import __version__

LAG_SECONDS = 0.25
"""Time between two samples of the event loop's lag."""


def _oldest_arrival(snapshot: Snapshot) -> float:
    oldest = snapshot.reading.queue.oldest_arrival
    return snapshot.taken_at if isinf(oldest) else oldest


GAUGES: Mapping[str, Callable[[Snapshot], float]] = {
    "records_unacked": lambda now: now.totals.unacked,
    "records_imbalance": lambda now: now.totals.imbalance,
    "queue_records": lambda now: now.reading.queue.records,
    "queue_bytes": lambda now: now.reading.queue.size,
    "queue_capacity_records": lambda now: now.reading.queue.capacity_records,
    "queue_capacity_bytes": lambda now: now.reading.queue.capacity_size,
    "spool_bytes": lambda now: sum(spool.size for spool in now.reading.spools.values()),
    "spool_capacity_bytes": lambda now: sum(spool.capacity for spool in now.reading.spools.values()),
    "spool_corrupt_segments_total": lambda now: sum(spool.corrupt_segments for spool in now.reading.spools.values()),
    "batch_target_records": lambda now: now.cutting.target_records,
    "batch_target_wait_seconds": lambda now: now.cutting.target_wait,
    "worker_restarts_total": lambda now: now.cutting.worker_restarts,
    "checkpoint_last_success_timestamp_seconds": lambda now: now.delivering.last_synced_wall,
}
"""Metrics of a pipeline without further labels, read off its snapshot."""
SINK_GAUGES: Mapping[str, Callable[[Snapshot], float]] = {
    "sink_inflight_batches": lambda now: now.cutting.inflight_batches,
    "sink_last_success_timestamp_seconds": lambda now: now.delivering.last_written_wall,
}
"""The same, labelled by sink."""
MOMENTS: Mapping[str, Callable[[Snapshot], float]] = {"queue_oldest_record_timestamp_seconds": _oldest_arrival}
"""The same as GAUGES for times that a snapshot has in monotonic seconds."""


class Named(Protocol):
    """A sink, as far as metrics see it."""

    @property
    def name(self) -> str: ...


class Observed(Protocol):
    """A pipeline, as far as metrics see it."""

    @property
    def name(self) -> str: ...

    @property
    def sink(self) -> Named: ...

    def snapshot(self) -> Snapshot: ...


class Metrics(Collector):
    """The metrics of one process and of its attached pipelines. A registry takes one of these.

    `collect` takes a snapshot of every pipeline, so it must be called on their event loop.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        *,
        revision: str = "unknown",
        config_digest: str | None = None,
        log_messages: Mapping[str, int] | None = None,
        clock: Clock | None = None,
    ) -> None:
        """log_messages: lines logged by level, a mapping that goes on counting."""
        self._revision, self._config_digest = revision, config_digest
        self._clock: Clock = clock or SystemClock()
        self._attached: dict[str, _Attached] = {}
        self._config_reloads: Counter[str] = Counter()
        self._log_messages = log_messages if log_messages is not None else {}
        self._loop_lag = Buckets(SECONDS)
        registry.register(self)

    def attach(
        self,
        pipeline: Observed,
        observer: MetricsObserver,
        *,
        model_format: str,
        model_digest: str = "",
        drift: Drift | None = None,
        tracing: Tracing | None = None,
    ) -> None:
        """Serve the metrics of a pipeline and its observer, in place of an earlier pipeline of the same name."""
        self._attached[pipeline.name] = _Attached(
            pipeline, observer, model_format, model_digest, self._clock.wall(), drift, tracing
        )

    def config_reloaded(self, *, ok: bool, digest: str | None) -> None:
        """Count a reload. digest: that of the config now in use."""
        self._config_reloads[OUTCOMES[not ok]] += 1
        self._config_digest = digest

    def model_reloaded(self, pipeline: str, *, ok: bool, model_format: str, model_digest: str = "") -> None:
        """Count a model that replaced a pipeline's, or failed to. Format and digest are those of the model in use."""
        attached = self._attached[pipeline]
        attached.model_reloads[OUTCOMES[not ok]] += 1
        if ok:
            attached.model_format, attached.model_digest = model_format, model_digest
            attached.since_wall = self._clock.wall()

    def loop_lagged(self, seconds: float) -> None:
        """Add one sample of the event loop's lag."""
        self._loop_lag.add_one(seconds)

    def describe(self) -> list[Family]:
        """Return the families without samples: from their names a registry sees that it has one Metrics already."""
        return [metric.family() for metric in CATALOGUE]

    def collect(self) -> list[Family]:
        """Return the families that have samples."""
        # All families first: a sample for a metric that is not in the catalogue is a KeyError, which a test would find.
        families = {metric.name: metric.family() for metric in CATALOGUE}
        snapshots = [_put_pipeline(families, attached, self._clock) for attached in self._attached.values()]
        self._put_process(_SampleWriter(families), is_ready=all(snapshot.is_ready for snapshot in snapshots))
        return [family for family in families.values() if family.samples]

    def _put_process(self, samples: _SampleWriter, *, is_ready: bool) -> None:
        samples.put("ready", is_ready)
        samples.put("build_info", 1, __version__, self._revision, platform.python_version())
        if self._config_digest is not None:
            samples.put("config_info", 1, self._config_digest)
        with contextlib.suppress(RuntimeError):  # another loop than asyncio's, or none
            samples.put("asyncio_tasks", len(asyncio.all_tasks()))
        for outcome in OUTCOMES:
            samples.put("config_reloads_total", self._config_reloads[outcome], outcome)
        for level in LEVELS:
            samples.put("log_messages_total", self._log_messages.get(level, 0), level)
        samples.put_buckets("event_loop_lag_seconds", self._loop_lag)


async def sample_loop_lag(metrics: Metrics, clock: Clock) -> None:
    """Sample the event loop's lag until cancelled."""
    while True:
        due = clock.monotonic() + LAG_SECONDS
        await anyio.sleep(LAG_SECONDS)
        metrics.loop_lagged(max(0.0, clock.monotonic() - due))


@dataclass
class _Attached:
    """A pipeline with what is served of it."""

    pipeline: Observed
    observer: MetricsObserver
    model_format: str
    model_digest: str
    since_wall: float
    drift: Drift | None
    tracing: Tracing | None
    model_reloads: Counter[str] = field(default_factory=Counter)


class _SampleWriter:
    """Adds samples to families, all with `labels` first."""

    def __init__(self, families: Mapping[str, Any], *labels: str) -> None:
        self._families, self._labels = families, labels

    def put(self, name: str, value: float, *labels: str) -> None:
        self._families[PREFIX + name].add_metric((*self._labels, *labels), value)

    def put_buckets(
        self,
        name: str,
        buckets: Buckets,
        *labels: str,
        series: int = 0,
        exemplars: Mapping[int, Exemplar] | None = None,
    ) -> None:
        """exemplars: by the index of their bucket. Prometheus' plain text format has none."""
        counts, total = buckets.sampled(series)
        shown = [(*count, exemplars.get(at)) for at, count in enumerate(counts)] if exemplars else counts
        self._families[PREFIX + name].add_metric((*self._labels, *labels), shown, total)


def _put_pipeline(families: Mapping[str, Family], attached: _Attached, clock: Clock) -> Snapshot:
    pipeline, observer = attached.pipeline, attached.observer
    snapshot = pipeline.snapshot()
    observer.batches.fold()
    samples = _SampleWriter(families, pipeline.name)
    # Snapshots have monotonic times; dashboards need dates.
    wall_ahead = clock.wall() - snapshot.taken_at
    for name, value in GAUGES.items():
        samples.put(name, value(snapshot))
    for name, moment in MOMENTS.items():
        samples.put(name, moment(snapshot) + wall_ahead)
    for name, value in SINK_GAUGES.items():
        samples.put(name, value(snapshot), pipeline.sink.name)
    _put_accounts(samples, snapshot)
    for source in snapshot.sources:
        _put_source(samples, source, observer.sources[source], snapshot, wall_ahead)
    _put_stages(samples, snapshot, observer, wall_ahead)
    _put_sink(samples, pipeline.sink.name, observer)
    _put_batches(samples, observer.batches, attached.tracing)
    for state in STATES:
        samples.put("pipeline_state", snapshot.state == state, state)
    samples.put("model_info", 1, attached.model_format, attached.model_digest)
    samples.put("model_loaded_timestamp_seconds", attached.since_wall)
    if attached.drift is not None:
        _put_drift(samples, attached.drift)
    for outcome in OUTCOMES:
        samples.put("model_reloads_total", attached.model_reloads[outcome], outcome)
    return snapshot


def _put_accounts(samples: _SampleWriter, snapshot: Snapshot) -> None:
    for source, counts in snapshot.sources.items():
        samples.put("source_received_records_total", counts.received, source)
        samples.put("records_recovered_total", counts.recovered, source)
        samples.put("records_scored_total", counts.scored, source)
        for refusal in REFUSALS:
            samples.put("source_refused_records_total", counts.refused.get(refusal, 0), source, refusal)
        for reason, intentional in DROPPED:
            samples.put("records_dropped_total", counts.dropped.get(reason, 0), source, reason, intentional)
    dead_letters = snapshot.delivering.dead_letters
    # Every known pair from the start at 0, and any other that occurred.
    for pair in dict.fromkeys((*DEAD_LETTERS, *dead_letters)):
        samples.put("records_dead_lettered_total", dead_letters.get(pair, 0), *pair)


def _put_source(
    samples: _SampleWriter, source: str, tally: SourceCounts, snapshot: Snapshot, wall_ahead: float
) -> None:
    samples.put("source_received_bytes_total", tally.size, source)
    under_way = snapshot.reading.waiting_seconds.get(source, 0.0)
    samples.put("source_blocked_seconds_total", tally.blocked_seconds + under_way, source)
    samples.put("source_connections_opened_total", tally.opened, source)
    samples.put("source_kernel_dropped_datagrams_total", tally.datagrams_dropped, source)
    samples.put("source_connections", tally.opened - tally.closed, source)
    for reason in REJECTED_CONNECTIONS:
        samples.put("source_connections_rejected_total", tally.rejected[reason], source, reason)
    for event in FILE_EVENTS:
        samples.put("source_file_events_total", tally.files[event], source, event)
    if tally.last_at is not None:
        samples.put("source_last_received_timestamp_seconds", tally.last_at + wall_ahead, source)
    backlog = snapshot.reading.backlogs.get(source)
    if backlog is not None:
        samples.put("source_lag_bytes", backlog.lag_bytes, source)
        for state in FILE_STATES:
            samples.put("source_files", backlog.files[state], source, state)


def _put_stages(samples: _SampleWriter, snapshot: Snapshot, observer: MetricsObserver, wall_ahead: float) -> None:
    for trigger in TRIGGERS:
        samples.put("batches_total", snapshot.cutting.batches.get(trigger, 0), trigger)
    # Records that come out of a stage: those batched, less those that died in it or before.
    left = observer.batches.batched
    for stage in STAGES:
        left -= observer.rejected[stage]
        samples.put("stage_records_total", left, stage, "ok")
        samples.put("stage_records_total", observer.rejected[stage], stage, "rejected")
        if stage == "preprocess":
            left -= observer.filtered
    for stage, seconds in observer.batches.busy().items():
        samples.put("stage_busy_seconds_total", seconds, stage)
        samples.put("stage_workers", 1 if stage == "sink" else snapshot.cutting.workers, stage)
    for stage, driver in snapshot.drivers.items():
        # A driver that waits by design is alive.
        beat = driver.turned_at if driver.parked is None else snapshot.taken_at
        samples.put("heartbeat_timestamp_seconds", beat + wall_ahead, stage)


def _put_sink(samples: _SampleWriter, sink: str, observer: MetricsObserver) -> None:
    samples.put("sink_sent_records_total", observer.batches.scored, sink)
    samples.put("sink_sent_bytes_total", observer.batches.payload_size, sink)
    for error_type in ERROR_TYPES:
        samples.put("sink_errors_total", observer.sink_errors[error_type], sink, error_type)
    samples.put("sink_retries_total", observer.sink_retries, sink)
    for outcome in OUTCOMES:
        samples.put("checkpoints_total", observer.checkpoints[outcome], outcome)
    samples.put_buckets("checkpoint_duration_seconds", observer.checkpoint_duration)


def _put_drift(samples: _SampleWriter, drift: Drift) -> None:
    drift.fold()
    samples.put("drift_sampled_records_total", drift.sampled)
    for feature in drift.features():
        if feature.missing is not None:
            samples.put("drift_feature_missing_ratio", feature.missing, feature.label)
        for quantile, value in feature.quantiles.items():
            samples.put("drift_feature_quantile", value, feature.label, f"{quantile:g}")
    for score in drift.scores():
        for quantile, value in score.quantiles.items():
            samples.put("drift_score_quantile", value, score.label, f"{quantile:g}")


def _put_batches(samples: _SampleWriter, batches: BatchLog, tracing: Tracing | None) -> None:
    histograms = batches.histograms
    for parts, buckets in ((OF_CHUNK, histograms.of_chunks), (OF_BATCH, histograms.of_batches)):
        for at, (name, label) in enumerate(parts):
            samples.put_buckets(name, buckets, label, series=at)
    exemplars = tracing.exemplars if tracing is not None else None
    samples.put_buckets("end_to_end_latency_seconds", histograms.end_to_end, exemplars=exemplars)
    samples.put_buckets("ack_latency_seconds", histograms.acks)
    samples.put_buckets("batch_records", histograms.records)
    samples.put_buckets("batch_bytes", histograms.sizes)
    samples.put_buckets("batch_fill_seconds", histograms.fill)
