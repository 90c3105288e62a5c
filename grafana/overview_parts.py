"""The lower half of the overview, a row for each part of a pipeline: what one opens to find a cause."""

from __future__ import annotations

from grafana.building import BAD_FROM_ONE, BLUE, GREEN, RED, YELLOW, About, Row, colour, graph, names, number
from grafana.queries import (
    Query,
    age,
    increase,
    mean,
    of_pipeline,
    of_process,
    quantile,
    quantile_of_process,
    rate,
    ratio,
    total,
)

OF_SCORING = 'stage="score"'
OK_OR_NOT = {".*ok": GREEN, ".*failed": RED}

MODEL = Row(
    "Model",
    [
        names(
            About(
                "Model in use", "Format and digest of the model. Two digests here: processes that don't agree.", "none"
            ),
            Query(total(of_pipeline("model_info"), "format, digest", function="max"), "{{format}} {{digest}}"),
            span=12,
        ),
        number(
            About("Model loaded", "Time since the oldest of the models in use was loaded.", "s", ("reload-failed",)),
            age(of_pipeline("model_loaded_timestamp_seconds")),
            span=6,
        ),
        number(
            About(
                "Worker restarts",
                "Worker processes that had to be started again, at a rate of an hour.",
                "none",
                ("restart-loop",),
            ),
            rate(of_pipeline("worker_restarts_total")) + " * 3600",
            steps=BAD_FROM_ONE,
            span=6,
        ),
        graph(
            About(
                "Model time of a record",
                "Time in the model, spread over the records of its batches.",
                "s",
                ("latency-high",),
            ),
            Query(
                ratio(
                    rate(of_pipeline("stage_busy_seconds_total", OF_SCORING), "pipeline"),
                    rate(of_pipeline("stage_records_total", f'{OF_SCORING},outcome="ok"'), "pipeline"),
                ),
                "{{pipeline}}",
            ),
        ),
        graph(
            About(
                "Model time of a batch",
                "Time of one call of the model, by the records that were in it.",
                "s",
                ("latency-high",),
            ),
            Query(quantile(0.5, "stage_duration_seconds", "", OF_SCORING), "p50"),
            Query(quantile(0.99, "stage_duration_seconds", "", OF_SCORING), "p99"),
        ),
        colour(
            graph(
                About(
                    "Model reloads", "Models loaded into a running pipeline, or refused.", "none", ("reload-failed",)
                ),
                Query(increase(of_pipeline("model_reloads_total"), "pipeline, outcome"), "{{pipeline}} {{outcome}}"),
            ),
            OK_OR_NOT,
        ),
    ],
)

DRIFT = Row(
    "Drift",
    [
        graph(
            About("Features", "Quantiles of the features watched, lately, from a sample; see `[drift]`.", "short"),
            Query(
                total(of_pipeline("drift_feature_quantile"), "pipeline, feature, q", function="avg"),
                "{{pipeline}} {{feature}} {{q}}",
            ),
            span=12,
            has_negative=True,
        ),
        graph(
            About("Scores", "Quantiles of the scores, lately, from a sample.", "short"),
            Query(
                total(of_pipeline("drift_score_quantile"), "pipeline, output, q", function="avg"),
                "{{pipeline}} {{output}} {{q}}",
            ),
            span=12,
            has_negative=True,
        ),
        graph(
            About("Missing features", "Share of sampled records without a feature.", "percentunit"),
            Query(
                total(of_pipeline("drift_feature_missing_ratio"), "pipeline, feature", function="avg"),
                "{{pipeline}} {{feature}}",
            ),
            span=12,
            top=1,
        ),
        graph(
            About("Records looked at", "Records sampled in a second.", "cps"),
            Query(rate(of_pipeline("drift_sampled_records_total"), "pipeline"), "{{pipeline}}"),
            span=12,
        ),
    ],
    collapsed=True,
)

SOURCES = Row(
    "Sources",
    [
        graph(
            About("Received", "Records in a second from each source.", "cps"),
            Query(rate(of_pipeline("source_received_records_total"), "pipeline, source"), "{{pipeline}} {{source}}"),
        ),
        graph(
            About("Silence", "Time since a source last brought records.", "s"),
            Query(
                age(of_pipeline("source_last_received_timestamp_seconds"), "pipeline, source"),
                "{{pipeline}} {{source}}",
            ),
        ),
        graph(
            About("Lag", "Bytes in input files that are not read yet.", "bytes", ("lag-growing",)),
            Query(total(of_pipeline("source_lag_bytes"), "pipeline, source"), "{{pipeline}} {{source}}"),
        ),
        graph(
            About("Connections", "Clients connected.", "short"),
            Query(total(of_pipeline("source_connections"), "pipeline, source"), "{{pipeline}} {{source}}"),
        ),
        graph(
            About(
                "Connections opened or turned away",
                "Clients that came in a second; by why, those sent away or cut off.",
                "cps",
            ),
            Query(rate(of_pipeline("source_connections_opened_total"), "source"), "{{source}} opened"),
            Query(
                rate(of_pipeline("source_connections_rejected_total"), "source, reason"),
                "{{source}} rejected: {{reason}}",
            ),
        ),
        graph(
            About(
                "Datagrams lost in the system",
                "Datagrams that came faster than they could be read.",
                "cps",
                ("unintentional-drop",),
            ),
            Query(
                rate(of_pipeline("source_kernel_dropped_datagrams_total"), "pipeline, source"),
                "{{pipeline}} {{source}}",
            ),
        ),
        graph(
            About("Files", "Input files, by what state they are in.", "short", ("lag-growing",)),
            Query(total(of_pipeline("source_files"), "source, state"), "{{source}} {{state}}"),
        ),
        graph(
            About("File events", "What happened to input files. `truncated` may have cost records.", "none"),
            Query(increase(of_pipeline("source_file_events_total"), "source, event"), "{{source}} {{event}}"),
        ),
        graph(
            About("Recovered", "Records read again after a restart, since they were not acked before it.", "cps"),
            Query(rate(of_pipeline("records_recovered_total"), "pipeline, source"), "{{pipeline}} {{source}}"),
        ),
    ],
)

SINKS = Row(
    "Sinks",
    [
        graph(
            About("Written", "Scores in a second handed to each sink.", "cps", ("sink-stopped",)),
            Query(rate(of_pipeline("sink_sent_records_total"), "pipeline, sink"), "{{pipeline}} {{sink}}"),
        ),
        graph(
            About("Errors", "Writes in a second that failed, by what kind of error.", "cps", ("sink-errors",)),
            Query(rate(of_pipeline("sink_errors_total"), "sink, error_type"), "{{sink}} {{error_type}}"),
            Query(rate(of_pipeline("sink_retries_total"), "sink"), "{{sink}} tried again"),
        ),
        graph(
            About(
                "Time since the last write",
                "Grows while there is nothing to write, too: look at batches in flight.",
                "s",
                ("sink-stopped",),
            ),
            Query(age(of_pipeline("sink_last_success_timestamp_seconds"), "pipeline, sink"), "{{pipeline}} {{sink}}"),
        ),
        graph(
            About("Batches in flight", "Batches cut and not yet written.", "short", ("sink-stopped",)),
            Query(total(of_pipeline("sink_inflight_batches"), "pipeline, sink"), "{{pipeline}} {{sink}}"),
        ),
        graph(
            About(
                "Time of a write",
                "What 99 of 100 scored records waited for the sink, and spent being written.",
                "s",
                ("latency-high",),
            ),
            Query(quantile(0.99, "wait_seconds", "", 'at="sink"'), "wait"),
            Query(quantile(0.99, "stage_duration_seconds", "", 'stage="sink"'), "write"),
        ),
        graph(
            About("Bytes of a score", "Bytes written in a second, over the scores written in it.", "bytes"),
            Query(
                ratio(
                    rate(of_pipeline("sink_sent_bytes_total"), "pipeline, sink"),
                    rate(of_pipeline("sink_sent_records_total"), "pipeline, sink"),
                ),
                "{{pipeline}} {{sink}}",
            ),
        ),
    ],
)

DURABILITY = Row(
    "Durability",
    [
        graph(
            About(
                "Time since the last checkpoint",
                "What came later would be read again after a crash, or be lost if it came by a plain socket.",
                "s",
                ("checkpoint-stale",),
            ),
            Query(age(of_pipeline("checkpoint_last_success_timestamp_seconds"), "pipeline"), "{{pipeline}}"),
        ),
        colour(
            graph(
                About("Checkpoints", "Checkpoints in a second, by how they ended.", "cps", ("checkpoint-stale",)),
                Query(rate(of_pipeline("checkpoints_total"), "pipeline, outcome"), "{{pipeline}} {{outcome}}"),
            ),
            OK_OR_NOT,
        ),
        graph(
            About(
                "Time of a checkpoint",
                "Time it took to make outputs durable: mostly fsync.",
                "s",
                ("checkpoint-stale",),
            ),
            Query(mean("checkpoint_duration_seconds", "pipeline"), "{{pipeline}} mean"),
            Query(quantile(0.99, "checkpoint_duration_seconds", "pipeline"), "{{pipeline}} p99"),
        ),
        graph(
            About("Time to durable", "From a record's arrival to its score durable.", "s", ("checkpoint-stale",)),
            Query(quantile(0.5, "ack_latency_seconds"), "p50"),
            Query(quantile(0.99, "ack_latency_seconds"), "p99"),
        ),
        graph(
            About(
                "Spool fill",
                "How full the spool is; at 100 % senders are held back.",
                "percentunit",
                ("spool-full-in-4h",),
            ),
            Query(
                ratio(
                    total(of_pipeline("spool_bytes"), "pipeline"),
                    total(of_pipeline("spool_capacity_bytes"), "pipeline"),
                ),
                "{{pipeline}}",
            ),
            steps=((None, GREEN), (0.7, YELLOW), (0.9, RED)),
            top=1,
        ),
        graph(
            About(
                "Corrupt segments",
                "Spool segments that failed their checksum and were put aside.",
                "none",
                ("spool-corruption",),
            ),
            Query(increase(of_pipeline("spool_corrupt_segments_total"), "pipeline"), "{{pipeline}}"),
            steps=BAD_FROM_ONE,
        ),
    ],
)

PROCESS = Row(
    "Process",
    [
        names(
            About(
                "Version", "Version, revision and Python of the processes. Two lines: a rollout in the middle.", "none"
            ),
            Query(
                total(of_process("build_info"), "version, revision, python_version", function="max"),
                "{{version}} {{revision}}, Python {{python_version}}",
            ),
            span=12,
        ),
        names(
            About("Config", "Digest of the config in effect.", "none", ("reload-failed",)),
            Query(total(of_process("config_info"), "digest", function="max"), "{{digest}}"),
            span=12,
        ),
        graph(
            About("CPU", "Cores that each process uses.", "short"),
            Query(rate(of_process("process_cpu_seconds_total"), "instance"), "{{instance}}"),
        ),
        graph(
            About("Memory", "Resident memory. `[limits] memory` bounds the records in it.", "bytes"),
            Query(total(of_process("process_resident_memory_bytes"), "instance"), "{{instance}}"),
        ),
        graph(
            About("Open files", "File descriptors in use, of those allowed.", "percentunit"),
            Query(
                ratio(
                    total(of_process("process_open_fds"), "instance"), total(of_process("process_max_fds"), "instance")
                ),
                "{{instance}}",
            ),
            steps=((None, GREEN), (0.8, RED)),
            top=1,
        ),
        graph(
            About("Event loop lag", "How late the event loop is; code that blocks it shows here.", "s", ("loop-lag",)),
            Query(quantile_of_process(0.5, "event_loop_lag_seconds", "instance"), "{{instance}} p50"),
            Query(quantile_of_process(0.99, "event_loop_lag_seconds", "instance"), "{{instance}} p99"),
            steps=((None, GREEN), (0.25, RED)),
        ),
        graph(
            About(
                "Tasks",
                "Tasks of the event loop. They should not grow without connections that do.",
                "short",
                ("loop-lag",),
            ),
            Query(total(of_process("asyncio_tasks"), "instance"), "{{instance}}"),
        ),
        colour(
            graph(
                About("Log messages", "Messages in a second, by level.", "cps"),
                Query(rate(of_process("log_messages_total"), "level"), "{{level}}"),
            ),
            {"warning": YELLOW, "error|critical": RED, "info": BLUE},
        ),
        colour(
            graph(
                About(
                    "Config reloads",
                    "Configs that were taken over while running, or refused.",
                    "none",
                    ("reload-failed",),
                ),
                Query(increase(of_process("config_reloads_total"), "instance, outcome"), "{{instance}} {{outcome}}"),
            ),
            OK_OR_NOT,
        ),
    ],
    collapsed=True,
)
