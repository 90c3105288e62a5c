"""Traces of batches: what their spans say, who gets them, and that nothing of it holds up a pipeline."""

from __future__ import annotations

import subprocess
import sys
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from prometheus_client.samples import Exemplar
from structlog.testing import capture_logs

import streambatch as sb
from streambatch.config.assemble import load_config
from streambatch.core.batches import Batch
from streambatch.core.clock import SystemClock
from streambatch.core.errors import ConfigError, OptionError
from streambatch.core.events import Observers
from streambatch.core.outcomes import Outcome
from streambatch.observe import Metrics, MetricsObserver, tracing
from streambatch.observe.tracing import TRACES_AT_ONCE, TRACES_PER_SECOND, OtelOptions, Tracing
from tests.e2e.ports import held_port
from tests.e2e.running import Daemon, run_to_end, running
from tests.moved_clock import MovedClock
from tests.observe.batches import batch_of, outcome_of, scored_batches
from tests.observe.collectors import collecting
from tests.web.clients import app_of, ask, serving

CONFIG = """
    name = "rides"
    [source.rides_in]
    type = "file"
    path = "in.jsonl"
    [record]
    id = "id"
    features = "x"
    shape = [2]
    [batch]
    max_records = 10
    [model]
    type = "linear"
    path = "model.npz"
    [sink.scores]
    type = "file"
    path = "out.jsonl"
    [http]
    listen = "off"
    [otel]
    enabled = true
    endpoint = "{endpoint}"
    """
TIMES = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]
STAGES = ["decode", "validate", "preprocess", "score", "encode", "sink"]
EPOCH = 1_800_000_000
OPENMETRICS = {"accept": "application/openmetrics-text; version=1.0.0"}


class LateClock(MovedClock):
    """Its monotonic time began at EPOCH."""

    def wall(self) -> float:
        return self.now + EPOCH


def tracing_of(clock: Any, **chosen: Any) -> tuple[Tracing, InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    return Tracing(OtelOptions(enabled=True, **chosen), "rides", clock, exporter=exporter), exporter


def traced(*written: tuple[Batch, Outcome], clock: Any = None, **chosen: Any) -> list[ReadableSpan]:
    """Return the spans of batches that were written."""
    told, exporter = tracing_of(clock or MovedClock(), **chosen)
    for each in written:
        told.batch_written(*each)
    told.close()
    return list(exporter.get_finished_spans())


def one_batch(sequence: int = 0, at: float = 0.0) -> tuple[Batch, Outcome]:
    batch = batch_of([(3, (at, at + 0.25, at + 0.5))], [at + time for time in TIMES], sequence=sequence)
    return batch, outcome_of(batch)


def seconds(span: ReadableSpan) -> float:
    assert span.start_time is not None
    assert span.end_time is not None
    return (span.end_time - span.start_time) / 1e9


def roots(spans: list[ReadableSpan]) -> list[ReadableSpan]:
    return [span for span in spans if span.parent is None]


@given(scored_batches())
def test_the_parts_of_a_trace_follow_each_other_and_add_up(written: tuple[Batch, Outcome]) -> None:
    spans = traced(written)
    (root,) = roots(spans)
    parts = [span for span in spans if span is not root]
    batch, outcome = written
    latency = batch.stamps.written - min(chunk.arrived_at for chunk in batch.chunks)
    assert seconds(root) == pytest.approx(latency, abs=1e-8)
    assert sum(map(seconds, parts)) == pytest.approx(latency, abs=1e-8)
    at = root.start_time
    for part in sorted(parts, key=lambda span: (span.start_time, span.end_time)):
        assert part.start_time == at
        assert part.context.trace_id == root.context.trace_id
        at = part.end_time
    said: Any = dict(root.attributes or {})
    assert sum(said[f"streambatch.{name}"] for name in ("scored", "dead_letters", "filtered")) == batch.count
    assert said["streambatch.dead_letters"] == len(outcome.rejects)


@given(st.integers(0, 10**15), st.lists(st.integers(0, 1000), min_size=10, max_size=10))
def test_parts_of_nanoseconds_keep_their_length(start: int, lengths: list[int]) -> None:
    """The clock's own nanoseconds, up to eleven days after the machine started, and the epoch far away from them."""
    moments = list(accumulate(lengths, initial=start))
    arrived, *later = [moment / 1e9 for moment in moments]
    batch = batch_of([(3, (arrived, arrived, arrived))], later)
    spans = traced((batch, outcome_of(batch)), clock=LateClock())
    (root,) = roots(spans)
    assert (root.start_time, root.end_time) == (EPOCH * 10**9 + start, EPOCH * 10**9 + moments[9])
    parts = [(span.start_time, span.end_time) for span in spans if span is not root]
    bounds = [EPOCH * 10**9 + moment for moment in moments[:10]]
    assert sorted(parts) == [(began, ended) for began, ended in pairwise(bounds) if began < ended]


def test_a_trace_tells_wall_time_and_parts() -> None:
    spans = traced(one_batch(7), clock=LateClock())
    (root,) = roots(spans)
    assert root.start_time == EPOCH * 10**9
    names = [span.name for span in sorted(spans, key=lambda span: span.start_time or 0) if span is not root]
    assert names == [
        "wait source", "wait queue", "wait batch", "wait worker", "decode", "validate", "preprocess", "score", "encode",
        "wait sink", "sink",
    ]  # fmt: skip
    assert root.attributes is not None
    assert dict(root.attributes) == {
        "streambatch.pipeline": "rides", "streambatch.batch": 7, "streambatch.trigger": "size",
        "streambatch.records": 3, "streambatch.bytes": 6, "streambatch.scored": 3, "streambatch.dead_letters": 0,
        "streambatch.filtered": 0, "streambatch.retries": 0,
    }  # fmt: skip


def test_a_share_of_batches_is_traced() -> None:
    written = [one_batch(at, at * 1.0) for at in range(1000)]
    assert 50 < len(roots(traced(*written, sample=0.1))) < 200
    assert len(roots(traced(*written[:100]))) == 100


def test_of_many_batches_a_bounded_number_is_traced() -> None:
    a_second = [one_batch(at, at / 1000) for at in range(1000)]
    assert len(roots(traced(*a_second))) <= TRACES_AT_ONCE + TRACES_PER_SECOND


def test_exemplars_are_records_of_their_bucket() -> None:
    told, exporter = tracing_of(MovedClock())
    slow, quick, dead = one_batch(), batch_of([(2, (8.875, 8.875, 8.875))], [8.9375] * 10), one_batch()
    told.batch_written(*slow)
    told.batch_written(quick, outcome_of(quick))
    told.batch_written(dead[0], outcome_of(dead[0], rejects=[(at, "decode") for at in range(3)]))
    told.close()
    ids = [f"{root.context.trace_id:032x}" for root in roots(list(exporter.get_finished_spans()))]
    slow_one, quick_one = told.exemplars[12], told.exemplars[6]
    assert [slow_one.labels, quick_one.labels] == [{"trace_id": ids[0]}, {"trace_id": ids[1]}]
    assert slow_one.value == 9.0
    assert quick_one.value == 0.0625
    assert told.exemplars.keys() == {12, 6}


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_exemplars_are_served_to_those_who_accept_openmetrics() -> None:
    told, exporter = tracing_of(SystemClock())
    observer, registry, bare = MetricsObserver(), CollectorRegistry(), CollectorRegistry()
    pipeline = sb.Pipeline(
        sources=[sb.MemorySource([b'{"id": %d, "x": [1, 2]}\n' % at for at in range(1000)])],
        record=sb.RecordSchema(id="id", features="x", shape=(2,)),
        model=sb.LinearModel([1.0, 2.0]),
        sink=sb.MemorySink(),
        observer=Observers(observer, told),
    )
    Metrics(registry).attach(pipeline, observer, model_format="linear", tracing=told)
    Metrics(bare).attach(pipeline, observer, model_format="linear")
    await pipeline.run()
    told.close()
    async with serving(app_of(registry=registry)) as address:
        answer = await ask(address, "/metrics", headers=OPENMETRICS)
        plain = await ask(address, "/metrics")
    found = exemplars_in(answer.text)
    ids = {f"{root.context.trace_id:032x}" for root in roots(list(exporter.get_finished_spans()))}
    assert found
    for name, below, le, exemplar in found:
        assert name == "streambatch_end_to_end_latency_seconds_bucket"
        assert exemplar.labels["trace_id"] in ids
        assert below < exemplar.value <= le
    assert "trace_id" not in plain.text
    assert lines_of_latency(plain.text) == lines_of_latency(generate_latest(bare).decode())


def exemplars_in(text: str) -> list[tuple[str, float, float, Exemplar]]:
    """Return name, bounds of the bucket, and exemplar of every sample that has one."""
    found, below = [], 0.0
    for family in text_string_to_metric_families(text):  # type: ignore[no-untyped-call]  # the library has no types
        for sample in family.samples:
            le = float(sample.labels.get("le", 0.0))
            if sample.exemplar is not None:
                found.append((sample.name, below, le, sample.exemplar))
            below = le
    return found


def lines_of_latency(text: str) -> list[str]:
    return [line for line in text.splitlines() if "end_to_end_latency_seconds" in line]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    np.savez(tmp_path / "model.npz", weights=[1.0, 10.0], bias=0.5)
    (tmp_path / "in.jsonl").write_bytes(b"".join(b'{"id": %d, "x": [1, 2]}\n' % at for at in range(95)) + b"oops\n")
    return tmp_path


@pytest.mark.slow
def test_a_daemon_sends_its_traces_to_a_collector(folder: Path) -> None:
    with collecting() as collector:
        report = run_to_end(folder, CONFIG.format(endpoint=collector.endpoint))
    assert report["records"]["scored"] == 95
    said = [batch.attributes for batch in collector.batches]
    assert sum(each["streambatch.records"] for each in said) == 96
    assert sum(each["streambatch.dead_letters"] for each in said) == 1
    assert {each["streambatch.run"] for each in said} == {report["run"]}
    assert all(len(each["streambatch.model_digest"]) == 64 for each in said)
    for batch in collector.batches:
        parts = collector.parts_of(batch)
        assert {part.name for part in parts} >= {"decode", "score"}
        assert all(batch.start <= part.start < part.end <= batch.end for part in parts)
        assert batch.resource["service.name"] == "streambatch"


@pytest.mark.slow
def test_an_exemplar_of_a_daemon_names_a_trace_that_was_sent(folder: Path) -> None:
    source = 'type = "tcp"\nlisten = "127.0.0.1:0"'
    with collecting() as collector:
        config = CONFIG.format(endpoint=collector.endpoint).replace('type = "file"\n    path = "in.jsonl"', source)
        with running(folder, config.replace('"off"', '"127.0.0.1:0"')) as daemon:
            daemon.send("rides_in", (folder / "in.jsonl").read_bytes())
            daemon.until(lambda: bool(exemplars_of(daemon)), "an exemplar")
            named = {exemplar.labels["trace_id"] for *_, exemplar in exemplars_of(daemon)}
            assert daemon.stop() == 0
    assert named <= {batch.trace for batch in collector.batches}


def exemplars_of(daemon: Daemon) -> list[tuple[str, float, float, Exemplar]]:
    return exemplars_in(daemon.get("/metrics", OPENMETRICS)[1].decode())


@pytest.mark.slow
def test_a_collector_that_is_away_costs_no_record(folder: Path) -> None:
    with held_port() as port:
        config = CONFIG.format(endpoint=f"http://127.0.0.1:{port}")
        assert run_to_end(folder, config)["records"]["scored"] == 95


def test_a_collector_that_is_away_is_told_once_and_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "CLOSE_SECONDS", 0.25)
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "4")
    with held_port() as port, capture_logs() as logged:
        endpoint = f"http://127.0.0.1:{port}"
        told = Tracing(OtelOptions(enabled=True, endpoint=endpoint), "rides", MovedClock())
        for at in range(50):
            told.batch_written(*one_batch(at, float(at)))
        told.close()
    (told_once,) = [line for line in logged if line["log_level"] == "warning"]
    assert told_once["event"] == "traces_lost"
    assert "refused" in told_once["error"]


def test_the_end_of_an_outage_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    class Away(InMemorySpanExporter):
        tries = 0

        def export(self, spans: Any) -> SpanExportResult:
            self.tries += 1
            if self.tries == 1:
                raise ConnectionResetError("gone")
            return SpanExportResult.FAILURE if self.tries < 4 else super().export(spans)

    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "1")
    with capture_logs() as logged:
        told = Tracing(OtelOptions(enabled=True), "rides", MovedClock(), exporter=Away())
        told.batch_written(*one_batch())
        told.close()
    assert [line["event"] for line in logged] == ["traces_lost", "traces_sent_again"]
    assert "gone" in logged[0]["error"]


def test_without_the_library_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "streambatch.observe.spans", raising=False)
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(ConfigError, match=r"otel.enabled: .* pip install 'streambatch\[otel\]'"):
        Tracing(OtelOptions(enabled=True), "rides", MovedClock())


def test_nothing_is_imported_unless_it_is_enabled() -> None:
    code = (
        "import streambatch.daemon.daemon, sys; "
        "print([name for name in sys.modules if name.startswith('opentelemetry')])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert found.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("endpoint", "address"),
    [
        (None, None),
        ("http://127.0.0.1:4318", "http://127.0.0.1:4318/v1/traces"),
        ("https://traces.example/", "https://traces.example/v1/traces"),
        ("http://[::1]:4318/otlp/traces", "http://[::1]:4318/otlp/traces"),
    ],
)
def test_where_traces_go(endpoint: str | None, address: str | None) -> None:
    assert OtelOptions(endpoint=endpoint).address == address


@pytest.mark.parametrize("endpoint", ["127.0.0.1:4318", "grpc://here:4317", "http://", "http://here:many", ""])
def test_what_is_no_endpoint(endpoint: str) -> None:
    with pytest.raises((OptionError, ConfigError), match=r"http://127.0.0.1:4318"):
        OtelOptions(endpoint=endpoint)


@pytest.mark.parametrize("line", ["sample = 0", "sample = 1.5", "endpoint = 'here'", "headers = {}"])
def test_mistakes_of_the_config_are_found(folder: Path, line: str) -> None:
    (folder / "pipeline.toml").write_text(CONFIG.partition("[otel]")[0] + f"[otel]\n{line}\n")
    with pytest.raises(ConfigError, match=rf"otel\.{line.split()[0]}"):
        load_config(folder / "pipeline.toml", environ={})
