"""The overview: what an operator asks, from top to bottom. Is it well, what flows, how late, what limits, and why."""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import Dashboard

from grafana.building import (
    BAD_FROM_ONE,
    BLUE,
    DEAD_STEPS,
    FULL_STEPS,
    GREEN,
    LATENCY_STEPS,
    RED,
    YELLOW,
    About,
    Row,
    bars,
    colour,
    dashboard_of,
    graph,
    heat,
    number,
    timeline,
)
from grafana.overview_parts import DRIFT, DURABILITY, MODEL, PROCESS, SINKS, SOURCES
from grafana.queries import (
    UNINTENDED,
    Query,
    age,
    buckets,
    dead_share,
    in_range,
    mean,
    of_pipeline,
    of_process,
    quantile,
    queue_fill,
    rate,
    rate_of_each,
    stage_use,
    total,
    worker_use,
)

SCORED = rate(of_pipeline("end_to_end_latency_seconds_count"))

HEALTH = Row(
    "Health at a glance",
    [
        number(
            About(
                "Ready",
                "Whether every pipeline chosen takes records in and can write scores.",
                "none",
                ("down", "sink-stopped"),
            ),
            total(of_process("ready"), function="min"),
            says={"1": ("READY", GREEN), "0": ("NOT READY", RED)},
        ),
        number(
            About("Records in", "Records received from all sources in a second.", "cps", ("stalled",)),
            rate(of_pipeline("source_received_records_total")),
        ),
        number(
            About("Records out", "Records in a second whose score is durable.", "cps", ("stalled", "checkpoint-stale")),
            rate(of_pipeline("records_scored_total")),
        ),
        number(
            About(
                "Latency p99",
                "From a record's arrival to its score written; 99 of 100 records are faster.",
                "s",
                ("latency-high",),
            ),
            quantile(0.99, "end_to_end_latency_seconds"),
            steps=LATENCY_STEPS,
        ),
        number(
            About(
                "Lost",
                "Records and datagrams lost in the time on show, and not by intent. Anything but 0 is a loss.",
                "none",
                ("unintentional-drop",),
            ),
            f"{in_range(of_pipeline('records_dropped_total', UNINTENDED))}"
            f" + {in_range(of_pipeline('source_kernel_dropped_datagrams_total'))}",
            steps=BAD_FROM_ONE,
        ),
        number(
            About(
                "Dead letters", "Share of the records done that could not be scored.", "percentunit", ("dead-letters",)
            ),
            dead_share(),
            steps=DEAD_STEPS,
        ),
        number(
            About("Unacked", "Records received whose score or dead letter is not durable yet.", "short", ("stalled",)),
            total(of_pipeline("records_unacked")),
        ),
        number(
            About("Uptime", "Time since the youngest process started.", "s", ("restart-loop",)),
            f"time() - {total(of_process('process_start_time_seconds'), function='max')}",
            steps=((None, YELLOW), (600, GREEN)),
        ),
    ],
)

FLOW = Row(
    "Flow",
    [
        colour(
            graph(
                About(
                    "Records", "What came in, and what became of it. Over time all lines out add up to those in.", "cps"
                ),
                Query(rate(of_pipeline("source_received_records_total")), "received"),
                Query(rate(of_pipeline("records_recovered_total")), "recovered"),
                Query(rate(of_pipeline("records_scored_total")), "scored"),
                Query(rate(of_pipeline("records_dead_lettered_total")), "dead letters"),
                Query(rate(of_pipeline("records_dropped_total")), "dropped"),
            ),
            {"received": BLUE, "scored": GREEN, "dead letters": YELLOW, "dropped": RED},
        ),
        graph(
            About("Bytes", "Bytes of the records received, and of the scores written.", "Bps"),
            Query(rate(of_pipeline("source_received_bytes_total"), "pipeline"), "{{pipeline}} received"),
            Query(rate(of_pipeline("sink_sent_bytes_total"), "pipeline"), "{{pipeline}} written"),
        ),
        timeline(
            About("State", "What each pipeline is at.", "none", ("down",)),
            Query(
                f"{total(of_pipeline('pipeline_state'), 'pipeline, state', function='max')} == 1",
                "{{pipeline}} {{state}}",
            ),
            {"1": ("", BLUE)},
        ),
        graph(
            About(
                "Why records die", "Dead letters in a second, by the stage and the reason.", "cps", ("dead-letters",)
            ),
            Query(rate(of_pipeline("records_dead_lettered_total"), "stage, reason") + " > 0", "{{stage}}: {{reason}}"),
            Query(rate(of_pipeline("stage_records_total", 'outcome="rejected"')), "all that stages rejected"),
        ),
        graph(
            About(
                "Dropped or refused",
                "Dropped: given up after it was received. Refused: the sender was told no, and may send it again.",
                "cps",
                ("unintentional-drop",),
            ),
            Query(rate(of_pipeline("records_dropped_total"), "source, reason"), "{{source}} dropped: {{reason}}"),
            Query(
                rate(of_pipeline("source_refused_records_total"), "source, reason"), "{{source}} refused: {{reason}}"
            ),
        ),
        graph(
            About(
                "Accounts",
                "Unacked: in flight. Imbalance: unaccounted for, which has to be 0 at all times.",
                "short",
                ("conservation-broken",),
            ),
            Query(total(of_pipeline("records_unacked"), "pipeline"), "{{pipeline}} unacked"),
            Query(total(f"abs({of_pipeline('records_imbalance')})", "pipeline"), "{{pipeline}} imbalance"),
        ),
    ],
)

LATENCY = Row(
    "Latency",
    [
        heat(
            About("Latency", "How many records took how long from arrival to score written.", "s", ("latency-high",)),
            buckets("end_to_end_latency_seconds"),
        ),
        colour(
            graph(
                About("Latency quantiles", "From arrival to score written.", "s", ("latency-high",)),
                Query(quantile(0.5, "end_to_end_latency_seconds"), "p50"),
                Query(quantile(0.95, "end_to_end_latency_seconds"), "p95"),
                Query(quantile(0.99, "end_to_end_latency_seconds"), "p99"),
                span=12,
            ),
            {"p50": GREEN, "p95": YELLOW, "p99": RED},
        ),
        graph(
            About(
                "Where the time goes",
                "Mean time of a scored record in each part of its way; together they are the mean latency.",
                "s",
                ("latency-high",),
            ),
            Query(rate_of_each(of_pipeline("wait_seconds_sum"), "at", SCORED), "wait: {{at}}"),
            Query(
                rate_of_each(of_pipeline("stage_duration_seconds_sum"), "stage", SCORED),
                "{{stage}}",
            ),
            stacked=True,
            span=12,
        ),
        graph(
            About("Parts, p99", "Of each part of the way, what 99 of 100 records stay below.", "s", ("latency-high",)),
            Query(quantile(0.99, "wait_seconds", "at"), "wait: {{at}}"),
            Query(quantile(0.99, "stage_duration_seconds", "stage"), "{{stage}}"),
            span=12,
        ),
    ],
)

SATURATION = Row(
    "Saturation: which stage limits",
    [
        graph(
            About(
                "Queue fill",
                "A full queue means that senders wait or records are dropped.",
                "percentunit",
                ("queue-saturated",),
            ),
            Query(queue_fill("records", "pipeline"), "{{pipeline}} records"),
            Query(queue_fill("bytes", "pipeline"), "{{pipeline}} bytes"),
            steps=FULL_STEPS,
            top=1,
        ),
        bars(
            About(
                "Busiest stage",
                "Share of the time that its workers are in each stage. Near 100 %, it is what limits.",
                "percentunit",
                ("queue-saturated",),
            ),
            Query(f"sort_desc({stage_use('pipeline, stage')})", "{{pipeline}} {{stage}}"),
            steps=((None, GREEN), (0.7, YELLOW), (0.9, RED)),
        ),
        graph(
            About(
                "Workers busy",
                "Share of their time that workers were busy; more of them help only near 100 %.",
                "percentunit",
            ),
            Query(worker_use("pipeline"), "{{pipeline}}"),
            steps=FULL_STEPS,
            top=1,
        ),
        graph(
            About(
                "Sources blocked",
                "Share of the time that sources waited for room, over all connections of a source.",
                "percentunit",
                ("backpressure",),
            ),
            Query(rate(of_pipeline("source_blocked_seconds_total"), "pipeline, source"), "{{pipeline}} {{source}}"),
            steps=((None, GREEN), (0.5, YELLOW)),
        ),
        graph(
            About(
                "Oldest record in the queue", "How long the record at the head has waited.", "s", ("queue-saturated",)
            ),
            Query(age(of_pipeline("queue_oldest_record_timestamp_seconds"), "pipeline"), "{{pipeline}}"),
        ),
        graph(
            About(
                "Time since a stage got on",
                "Near 0 while a stage works or waits by design; else it is stuck.",
                "s",
                ("stalled",),
            ),
            Query(age(of_pipeline("heartbeat_timestamp_seconds"), "pipeline, stage"), "{{pipeline}} {{stage}}"),
            steps=((None, GREEN), (30, RED)),
        ),
    ],
)

BATCHING = Row(
    "Batching",
    [
        graph(
            About(
                "Batches",
                "Batches in a second by why they closed. Mostly `time`: low load. Mostly `size`: full batches.",
                "cps",
            ),
            Query(rate(of_pipeline("batches_total"), "trigger"), "{{trigger}}"),
            stacked=True,
        ),
        heat(
            About("Records in a batch", "How many batches had how many records.", "short"),
            buckets("batch_records"),
            span=8,
        ),
        graph(
            About("Fill time", "From a batch's first record to its closing.", "s"),
            Query(quantile(0.5, "batch_fill_seconds"), "p50"),
            Query(quantile(0.99, "batch_fill_seconds"), "p99"),
        ),
        graph(
            About("Mean batch", "Records in a batch, and how many the latency controller asks for.", "short"),
            Query(mean("batch_records", "pipeline"), "{{pipeline}}"),
            Query(total(of_pipeline("batch_target_records"), "pipeline", function="avg"), "{{pipeline}} asked for"),
        ),
        graph(
            About("Wait asked for", "How long the latency controller lets a batch fill.", "s"),
            Query(total(of_pipeline("batch_target_wait_seconds"), "pipeline", function="avg"), "{{pipeline}}"),
        ),
        graph(
            About("Bytes in a batch", "Mean, and what 99 of 100 batches stay below.", "bytes"),
            Query(mean("batch_bytes", "pipeline"), "{{pipeline}} mean"),
            Query(quantile(0.99, "batch_bytes", "pipeline"), "{{pipeline}} p99"),
        ),
    ],
)


def overview() -> Dashboard:
    """Return the overview of the pipelines chosen."""
    return dashboard_of(
        "streambatch-overview",
        "streambatch: overview",
        "Whether pipelines are well, what flows through them, how late it comes out, and which stage limits.",
        [HEALTH, FLOW, LATENCY, SATURATION, BATCHING, MODEL, DRIFT, SOURCES, SINKS, DURABILITY, PROCESS],
    )
