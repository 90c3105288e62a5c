"""The catalogue: what is promised, and that all of it and nothing else is served."""

from __future__ import annotations

import subprocess
from collections import defaultdict
from collections.abc import Iterable
from typing import get_args

import numpy as np

from streambatch.core.backlog import Backlog, no_files
from streambatch.core.chunks import Reason
from streambatch.core.clock import SystemClock
from streambatch.core.events import FileEvent, Refusal, RejectedConnection
from streambatch.core.outcomes import Stage
from streambatch.core.report import Counts
from streambatch.core.schema import RecordSchema
from streambatch.observe import CATALOGUE
from streambatch.observe.catalogue import DEAD_LETTERS, PREFIX
from streambatch.observe.drift import Drift, DriftOptions
from tests.observe.batches import EARLY, TIMES, batch_of, outcome_of
from tests.observe.scrapes import Scraped
from tests.programs import needs
from tests.snapshots import FakePipeline, snapshot_of

SERIES_MAX = 1500
VALUES_MAX = 10
OF_THE_PROCESS = {
    "ready", "build_info", "config_info", "asyncio_tasks", "event_loop_lag_seconds", "config_reloads_total",
    "log_messages_total",
}  # fmt: skip
TEN_FEATURES = RecordSchema(id="id", features="x", shape=(10,))
NEEDS_AN_EVENT = {"source_last_received_timestamp_seconds"}
NEEDS_ASYNCIO = {"asyncio_tasks"}


def ten_sources() -> Scraped:
    names = [f"source_{n}" for n in range(10)]
    backlogs = {name: Backlog(0, no_files()) for name in names}
    return Scraped(FakePipeline(snapshot_of(sources={name: Counts() for name in names}, backlogs=backlogs)), drifting())


def drifting() -> Drift:
    """Return all that can be watched, with something to tell of each."""
    drift = Drift(DriftOptions(enabled=True, quantiles=[0.0, 0.05, 0.5, 0.95, 1.0]), TEN_FEATURES, SystemClock())
    drift.features_seen(np.ones((8, 10)))
    drift.scores_seen(np.ones((8, 10)))
    return drift


def test_names_follow_the_rules() -> None:
    names = [metric.name for metric in CATALOGUE]
    assert len(set(names)) == len(names)
    for metric in CATALOGUE:
        assert metric.name.startswith(PREFIX)
        assert metric.name.endswith("_total") == (metric.kind == "counter"), metric.name
        assert metric.help.endswith("."), metric.name
        named = metric.name.removesuffix("_total").rpartition("_")[2]
        assert metric.unit in (named, "boolean") or named not in ("seconds", "bytes", "records"), metric.name


def test_every_metric_says_which_pipeline_but_those_of_the_process() -> None:
    unlabelled = {metric.name.removeprefix(PREFIX) for metric in CATALOGUE if "pipeline" not in metric.labels}
    assert unlabelled == OF_THE_PROCESS
    assert all(metric.labels[0] == "pipeline" for metric in CATALOGUE if "pipeline" in metric.labels)


def test_all_that_is_promised_is_served_from_the_start() -> None:
    scrape = ten_sources().scrape(by_text=True)
    suffixes = {"counter": "", "gauge": "", "histogram": "_count"}
    served = {name for name, _ in scrape.samples}
    missing = {metric.name for metric in CATALOGUE if metric.name + suffixes[metric.kind] not in served}
    assert missing == {PREFIX + name for name in NEEDS_AN_EVENT | NEEDS_ASYNCIO}


def test_nothing_is_served_that_is_not_promised() -> None:
    suffixes = {"counter": ("",), "gauge": ("",), "histogram": ("_bucket", "_count", "_sum")}
    promised = {metric.name + suffix: metric for metric in CATALOGUE for suffix in suffixes[metric.kind]}
    scrape = ten_sources().scrape(by_text=True)
    for name, labels in scrape.samples:
        metric = promised[name]
        assert scrape.kinds[name] == metric.kind
        assert {label for label, _ in labels} - {"le"} == set(metric.labels), name


def test_counters_are_zero_before_anything_happened_for_every_value_of_their_labels() -> None:
    quiet = Drift(DriftOptions(enabled=True), TEN_FEATURES, SystemClock())
    scrape = Scraped(drift=quiet).scrape(by_text=True)
    counters = {(name, labels): value for (name, labels), value in scrape.samples.items() if name.endswith("_total")}
    assert set(counters.values()) == {0.0}
    assert {name for name, _ in counters} == {metric.name for metric in CATALOGUE if metric.kind == "counter"}
    assert values(scrape.find("batches_total"), "trigger") == {"size", "bytes", "time", "flush", "shutdown"}
    assert values(scrape.find("stage_records_total"), "outcome") == {"ok", "rejected"}
    assert values(scrape.find("source_refused_records_total"), "reason") == set(get_args(Refusal))
    assert values(scrape.find("source_connections_rejected_total"), "reason") == set(get_args(RejectedConnection))
    assert values(scrape.find("source_file_events_total"), "event") == set(get_args(FileEvent))
    assert values(scrape.find("records_dropped_total"), "reason") == {"queue_full", "filtered", "corrupt"}
    assert values(scrape.find("checkpoints_total"), "outcome") == {"ok", "failed"}
    assert len(values(scrape.find("sink_errors_total"), "error_type")) == 6


def values(found: Iterable[tuple[dict[str, str], float]], label: str) -> set[str]:
    return {labels[label] for labels, _ in found}


def test_series_stay_few() -> None:
    assert 300 < len(ten_sources().scrape(by_text=True).samples) < SERIES_MAX


def test_labels_have_few_values() -> None:
    by_label: dict[tuple[str, str], set[str]] = defaultdict(set)
    for name, labels in ten_sources().scrape(by_text=True).samples:
        having = dict(labels)
        for label, value in labels:
            if label == "le":
                continue
            # Of the reasons to die each belongs to a stage: they are few for each.
            where = f"{name} at {having['stage']}" if "dead_lettered" in name and label == "reason" else name
            by_label[where, label].add(value)
    assert {where: found for where, found in by_label.items() if len(found) > VALUES_MAX} == {}


def test_dead_letters_have_stages_and_reasons_of_their_own() -> None:
    assert {stage for stage, _ in DEAD_LETTERS} <= set(get_args(Stage))
    assert {reason for _, reason in DEAD_LETTERS} == set(get_args(Reason))
    assert len(set(DEAD_LETTERS)) == len(DEAD_LETTERS)


def test_a_death_that_nobody_foresaw_is_counted_all_the_same() -> None:
    scraped = Scraped(FakePipeline(snapshot_of(dead_letters={("sink", "sink_refused"): 3})))
    assert scraped.scrape(by_text=True).value("records_dead_lettered_total", stage="sink", reason="sink_refused") == 3


def test_created_series_are_off() -> None:
    assert "_created" not in Scraped().text()


@needs("promtool")
def test_promtool_finds_nothing_to_say() -> None:
    scraped = ten_sources()
    batch = batch_of([(3, EARLY)], TIMES)
    scraped.observer.records_received("source_1", 3, 99, 1.0)
    scraped.observer.batch_written(batch, outcome_of(batch, rejects=[(0, "decode")]))
    checked = subprocess.run(
        ["promtool", "check", "metrics"], input=scraped.text(), capture_output=True, text=True, check=False
    )
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")
