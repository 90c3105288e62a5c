"""The comparison: every pipeline of every instance side by side, to find the one that is unlike the others."""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import Dashboard

from grafana.building import (
    BAD_FROM_ONE,
    DEAD_STEPS,
    FULL_STEPS,
    GREEN,
    LATENCY_STEPS,
    RED,
    About,
    Column,
    Row,
    dashboard_of,
    graph,
    rows,
)
from grafana.queries import (
    UNINTENDED,
    Query,
    age,
    dead_share,
    in_range,
    mean,
    of_pipeline,
    of_process,
    quantile,
    quantile_of_process,
    queue_fill,
    rate,
    total,
    worker_use,
)

EACH, LEGEND = "instance, pipeline", "{{instance}} {{pipeline}}"
TO_OVERVIEW = (
    "/d/streambatch-overview?var-instance=${__data.fields.instance}&var-pipeline=${__data.fields.pipeline}"
    "&${datasource:queryparam}&${job:queryparam}&${__url_time_range}"
)
LOST = in_range(of_pipeline("records_dropped_total", UNINTENDED), EACH)

SIDE_BY_SIDE = Row(
    "Side by side",
    [
        rows(
            About(
                "Pipelines and instances",
                "A line for each pipeline of each instance, as it is now; click a pipeline for its overview.",
                "none",
                ("down",),
            ),
            [
                Column("Records in", rate(of_pipeline("source_received_records_total"), EACH), "cps"),
                Column("Records out", rate(of_pipeline("records_scored_total"), EACH), "cps"),
                Column(
                    "Latency p99",
                    quantile(0.99, "end_to_end_latency_seconds", EACH),
                    "s",
                    LATENCY_STEPS,
                ),
                Column("Dead letters", dead_share(EACH), "percentunit", DEAD_STEPS),
                Column("Lost", LOST, "none", BAD_FROM_ONE),
                Column("Queue fill", queue_fill("records", EACH), "percentunit", FULL_STEPS),
                Column("Workers busy", worker_use(EACH), "percentunit", FULL_STEPS),
                Column("Unacked", total(of_pipeline("records_unacked"), EACH), "short"),
            ],
            keys=("instance", "pipeline"),
            link=TO_OVERVIEW,
        ),
    ],
)

THROUGHPUT = Row(
    "Throughput",
    [
        graph(
            About("Received", "Records in a second.", "cps"),
            Query(rate(of_pipeline("source_received_records_total"), EACH), LEGEND),
        ),
        graph(
            About("Scored", "Records in a second whose score is durable.", "cps"),
            Query(rate(of_pipeline("records_scored_total"), EACH), LEGEND),
        ),
        graph(
            About(
                "Dead letters", "Share of the records done that could not be scored.", "percentunit", ("dead-letters",)
            ),
            Query(dead_share(EACH), LEGEND),
            steps=((None, GREEN), (0.01, RED)),
        ),
    ],
)

LATENCY = Row(
    "Latency",
    [
        graph(
            About(
                "Latency p50", "From arrival to score written; half of the records are faster.", "s", ("latency-high",)
            ),
            Query(quantile(0.5, "end_to_end_latency_seconds", EACH), LEGEND),
        ),
        graph(
            About("Latency p99", "From arrival to score written; 99 of 100 are faster.", "s", ("latency-high",)),
            Query(quantile(0.99, "end_to_end_latency_seconds", EACH), LEGEND),
        ),
        graph(
            About(
                "Time to durable p99",
                "From arrival to score durable; 99 of 100 are faster.",
                "s",
                ("checkpoint-stale",),
            ),
            Query(quantile(0.99, "ack_latency_seconds", EACH), LEGEND),
        ),
    ],
)

SATURATION = Row(
    "Saturation",
    [
        graph(
            About(
                "Queue fill",
                "Of the records that may wait to be batched, those that do.",
                "percentunit",
                ("queue-saturated",),
            ),
            Query(queue_fill("records", EACH), LEGEND),
            top=1,
        ),
        graph(
            About("Workers busy", "Share of their time that workers were busy.", "percentunit", ("queue-saturated",)),
            Query(worker_use(EACH), LEGEND),
            top=1,
        ),
        graph(
            About(
                "Sources blocked", "Share of the time that sources waited for room.", "percentunit", ("backpressure",)
            ),
            Query(rate(of_pipeline("source_blocked_seconds_total"), EACH), LEGEND),
        ),
        graph(About("Mean batch", "Records in a batch.", "short"), Query(mean("batch_records", EACH), LEGEND)),
        graph(
            About("Unacked", "Records in flight.", "short", ("stalled",)),
            Query(total(of_pipeline("records_unacked"), EACH), LEGEND),
        ),
        graph(
            About("Event loop lag p99", "How late the event loop of each process is.", "s", ("loop-lag",)),
            Query(quantile_of_process(0.99, "event_loop_lag_seconds", "instance"), "{{instance}}"),
        ),
    ],
)

VERSIONS = Row(
    "Who runs what",
    [
        graph(
            About("Versions", "Processes on each version. Two for long: a rollout that stopped half-way.", "short"),
            Query(f"count by (version, revision) ({of_process('build_info')})", "{{version}} {{revision}}"),
            stacked=True,
        ),
        graph(
            About("Configs", "Processes on each config, by its digest.", "short", ("reload-failed",)),
            Query(f"count by (digest) ({of_process('config_info')})", "{{digest}}"),
            stacked=True,
        ),
        graph(
            About("Models", "Pipelines on each model, by its digest.", "short", ("reload-failed",)),
            Query(f"count by (pipeline, digest) ({of_pipeline('model_info')})", "{{pipeline}} {{digest}}"),
            stacked=True,
        ),
        graph(
            About("Time since the last checkpoint", "Grows with what a crash would cost.", "s", ("checkpoint-stale",)),
            Query(age(of_pipeline("checkpoint_last_success_timestamp_seconds"), EACH), LEGEND),
        ),
        graph(
            About("CPU", "Cores that each process uses.", "short"),
            Query(rate(of_process("process_cpu_seconds_total"), "instance"), "{{instance}}"),
        ),
        graph(
            About("Memory", "Resident memory of each process.", "bytes"),
            Query(total(of_process("process_resident_memory_bytes"), "instance"), "{{instance}}"),
        ),
    ],
)


def compare() -> Dashboard:
    """Return the comparison of the pipelines and instances chosen."""
    return dashboard_of(
        "streambatch-compare",
        "streambatch: compare pipelines and instances",
        "Every pipeline of every instance side by side, to find the one that is unlike the others.",
        [SIDE_BY_SIDE, THROUGHPUT, LATENCY, SATURATION, VERSIONS],
    )
