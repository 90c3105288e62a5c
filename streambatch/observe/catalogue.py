"""The table of all metrics, and the values that their labels can take.

Names and labels are a promise to users: docs, dashboards and alerts are checked against this table. Label values are
names from the config, or come from the enumerations here. A label has at most ten values (`reason`: for each stage), so
that the number of series is bounded.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

from streambatch.core.backlog import FILE_STATES as FILE_STATES
from streambatch.core.chunks import Reason
from streambatch.core.events import FileEvent, Refusal, RejectedConnection
from streambatch.core.outcomes import Stage

PREFIX = "streambatch_"
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
RECORDS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 4096.0, 16384.0, 65536.0)
BYTES = tuple(float(1 << power) for power in range(8, 27, 2))

Kind = Literal["counter", "gauge", "histogram"]
Family = CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily
ErrorType = Literal["no_space", "io", "permission", "connection", "timeout", "other"]

STAGES = ("frame", "decode", "validate", "preprocess", "score", "encode", "sink")
OUTCOMES = ("ok", "failed")
LEVELS = ("debug", "info", "warning", "error", "critical")
ERROR_TYPES: tuple[ErrorType, ...] = get_args(ErrorType)
REFUSALS: tuple[Refusal, ...] = get_args(Refusal)
REJECTED_CONNECTIONS: tuple[RejectedConnection, ...] = get_args(RejectedConnection)
FILE_EVENTS: tuple[FileEvent, ...] = get_args(FileEvent)
DEAD_LETTERS: tuple[tuple[Stage, Reason], ...] = (
    ("frame", "oversize"),
    ("frame", "cut_off"),
    ("decode", "invalid_json"),
    ("decode", "invalid_csv"),
    ("decode", "invalid_encoding"),
    ("validate", "missing_field"),
    ("validate", "wrong_type"),
    ("validate", "wrong_shape"),
    ("validate", "not_finite"),
    ("preprocess", "step_error"),
    ("score", "model_error"),
    ("score", "non_finite_score"),
    ("sink", "sink_refused"),
)
"""Stages and reasons of dead letters."""
DROPPED = (("queue_full", "false"), ("filtered", "true"), ("corrupt", "false"))
"""Reasons to drop a record, and whether the config asks to drop that very record."""


class Metric(NamedTuple):
    """A metric: name, kind, labels in order, unit of its values, and help text."""

    name: str
    kind: Kind
    labels: tuple[str, ...]
    unit: str
    help: str

    def family(self) -> Family:
        """Return the metric without a sample."""
        families: dict[Kind, type[Family]] = {
            "counter": CounterMetricFamily,
            "gauge": GaugeMetricFamily,
            "histogram": HistogramMetricFamily,
        }
        return families[self.kind](self.name, self.help, labels=self.labels)


def _each(kind: Kind, name: str, labels: str, unit: str, help: str) -> Metric:
    """Return a metric that every pipeline has."""
    return _once(kind, name, f"pipeline {labels}", unit, help)


def _once(kind: Kind, name: str, labels: str, unit: str, help: str) -> Metric:
    """Return a metric that the process has once."""
    return Metric(PREFIX + name, kind, tuple(labels.split()), unit, help)


CATALOGUE: tuple[Metric, ...] = (
    _each("counter", "source_received_records_total", "source", "records", "Records framed from a source."),
    _each(
        "counter", "source_received_bytes_total", "source", "bytes", "Bytes of the records received, framing included."
    ),
    _each("counter", "records_recovered_total", "source", "records", "Records read again at start."),
    _each("counter", "source_refused_records_total", "source reason", "records", "Records whose sender was told no."),
    _each("counter", "source_blocked_seconds_total", "source", "seconds", "Time a source waited for room."),
    _each("counter", "source_connections_opened_total", "source", "connections", "Clients that connected."),
    _each(
        "counter", "source_connections_rejected_total", "source reason", "connections", "Clients sent away or cut off."
    ),
    _each(
        "counter",
        "source_kernel_dropped_datagrams_total",
        "source",
        "datagrams",
        "Datagrams that the system dropped before they could be read.",
    ),
    _each("counter", "source_file_events_total", "source event", "events", "What happened to input files."),
    _each("counter", "batches_total", "trigger", "batches", "Batches cut, by why they closed."),
    _each(
        "counter", "stage_records_total", "stage outcome", "records", "Records that came out of a stage, or died in it."
    ),
    _each(
        "counter", "stage_busy_seconds_total", "stage", "seconds", "Time a stage worked on batches, over all workers."
    ),
    _each("counter", "sink_sent_records_total", "sink", "records", "Scores written to a sink."),
    _each("counter", "sink_sent_bytes_total", "sink", "bytes", "Bytes of scores written to a sink."),
    _each("counter", "sink_errors_total", "sink error_type", "errors", "Writes to a sink that failed."),
    _each("counter", "sink_retries_total", "sink", "retries", "Writes tried again after an outage of a sink."),
    _each("counter", "records_scored_total", "source", "records", "Records whose score is durable."),
    _each("counter", "records_dead_lettered_total", "stage reason", "records", "Records whose dead letter is durable."),
    _each(
        "counter",
        "records_dropped_total",
        "source reason intentional",
        "records",
        "Records given up by config after they were received.",
    ),
    _each("counter", "checkpoints_total", "outcome", "checkpoints", "Checkpoints, stored or failed."),
    _each(
        "counter",
        "spool_corrupt_segments_total",
        "",
        "segments",
        "Damaged segments of spools, put aside.",
    ),
    _each("counter", "model_reloads_total", "outcome", "reloads", "Models loaded in place of another, or failed to."),
    _each("counter", "worker_restarts_total", "", "restarts", "Workers replaced since their call of the model hung."),
    _once("counter", "config_reloads_total", "outcome", "reloads", "Times the config was read again."),
    _once("counter", "log_messages_total", "level", "messages", "Lines logged, by level."),
    _each("gauge", "source_lag_bytes", "source", "bytes", "Bytes in input files that were not read."),
    _each("gauge", "source_files", "source state", "files", "Input files, by how far they were read."),
    _each("gauge", "spool_bytes", "", "bytes", "Bytes in spools."),
    _each("gauge", "spool_capacity_bytes", "", "bytes", "Bytes that spools may hold."),
    _each("gauge", "batch_target_records", "", "records", "Records at which a batch closes."),
    _each("gauge", "batch_target_wait_seconds", "", "seconds", "Time after which a batch closes."),
    _each("gauge", "source_connections", "source", "connections", "Clients connected."),
    _each(
        "gauge", "source_last_received_timestamp_seconds", "source", "seconds", "When a source last brought records."
    ),
    _each("gauge", "queue_records", "", "records", "Records waiting to be batched."),
    _each("gauge", "queue_bytes", "", "bytes", "Bytes waiting to be batched."),
    _each("gauge", "queue_capacity_records", "", "records", "Records that may wait to be batched."),
    _each("gauge", "queue_capacity_bytes", "", "bytes", "Bytes that may wait to be batched."),
    _each(
        "gauge",
        "queue_oldest_record_timestamp_seconds",
        "",
        "seconds",
        "When the oldest record in the queue arrived; now, while the queue is empty.",
    ),
    _each("gauge", "stage_workers", "stage", "workers", "Batches a stage can work on at once; workers are shared."),
    _each("gauge", "sink_inflight_batches", "sink", "batches", "Batches cut and not yet written."),
    _each(
        "gauge",
        "sink_last_success_timestamp_seconds",
        "sink",
        "seconds",
        "When the last write succeeded, or the start.",
    ),
    _each("gauge", "records_unacked", "", "records", "Records in flight."),
    _each("gauge", "records_imbalance", "", "records", "Records unaccounted for; anything but 0 is a defect."),
    _each(
        "gauge",
        "checkpoint_last_success_timestamp_seconds",
        "",
        "seconds",
        "When outputs were last durable, or the start.",
    ),
    _each("gauge", "pipeline_state", "state", "boolean", "1 for the state the pipeline is in."),
    _each("gauge", "model_info", "format digest", "boolean", "The model in use; its value is 1."),
    _each("gauge", "model_loaded_timestamp_seconds", "", "seconds", "When the pipeline was given its model."),
    _each("counter", "drift_sampled_records_total", "", "records", "Records whose features were looked at for drift."),
    _each("gauge", "drift_feature_quantile", "feature q", "value", "Quantile of a feature lately, from a sample."),
    _each("gauge", "drift_feature_missing_ratio", "feature", "ratio", "Share of sampled records without a feature."),
    _each("gauge", "drift_score_quantile", "output q", "value", "Quantile of a score lately, from a sample."),
    _each(
        "gauge",
        "heartbeat_timestamp_seconds",
        "stage",
        "seconds",
        "When a stage last got on with it; now, while it waits by design.",
    ),
    _once("gauge", "ready", "", "boolean", "1 while every pipeline takes records in and can pass scores on."),
    _once("gauge", "build_info", "version revision python_version", "boolean", "The code that runs; its value is 1."),
    _once("gauge", "config_info", "digest", "boolean", "The config in use; its value is 1."),
    _once("gauge", "asyncio_tasks", "", "tasks", "Tasks of the event loop."),
    _each("histogram", "end_to_end_latency_seconds", "", "seconds", "From arrival of a record to its score written."),
    _each("histogram", "wait_seconds", "at", "seconds", "Time a scored record waited, by what for."),
    _each("histogram", "stage_duration_seconds", "stage", "seconds", "Time a scored record's batch spent in a stage."),
    _each("histogram", "ack_latency_seconds", "", "seconds", "From arrival of a record to its score durable."),
    _each("histogram", "batch_records", "", "records", "Records in a batch."),
    _each("histogram", "batch_bytes", "", "bytes", "Bytes in a batch."),
    _each("histogram", "batch_fill_seconds", "", "seconds", "From a batch's first record to its closing."),
    _each("histogram", "checkpoint_duration_seconds", "", "seconds", "Time it took to make outputs durable."),
    _once("histogram", "event_loop_lag_seconds", "", "seconds", "How late the event loop was, sampled."),
)
