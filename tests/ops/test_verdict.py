"""Each way to be limited is told apart, and only knobs are named that there are."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streambatch.microbatch.inbox import QueueLimits
from streambatch.microbatch.window import BatchPolicy
from streambatch.ops import verdict as module
from streambatch.ops.load import WORKER_STAGES, Load
from streambatch.ops.verdict import RULES, Verdict, judge
from streambatch.scoring.executors.choice import Workers
from tests.ops.loads import load_of

PRESSED = {"queue_fill": 0.9}
SINKS: list[dict[str, str]] = [{"type": "http"}, {"type": "file", "format": "csv"}, {"type": "none"}]
OPTIONS = {"batch": BatchPolicy, "queue": QueueLimits, "workers": Workers}


def judged(**changes: Any) -> Verdict:
    verdict = judge(load_of(**changes))
    assert verdict is not None
    return verdict


def knob_of(verdict: Verdict) -> tuple[str, str, Any, Any] | None:
    knob = verdict.knob
    return None if knob is None else (knob.key, knob.direction, knob.now, knob.to)


def test_nothing_is_said_before_anything_is_known() -> None:
    assert judge(None) is None


def test_scarce_input_limits_nothing() -> None:
    verdict = judged(rates={**load_of().rates, "received": 10.0})
    assert (verdict.stage, verdict.knob) == ("nothing", None)
    assert "10 records/s" in verdict.sentence


def test_a_sink_in_an_outage_comes_first() -> None:
    parked = {"batch": "backpressure", "score": None, "sink": "retry"}
    verdict = judged(parked=parked, busy={"score": 1.0}, **PRESSED)
    assert (verdict.stage, verdict.knob) == ("sink", None)
    assert "can't be written" in verdict.sentence


def test_a_write_that_doesn_t_end() -> None:
    verdict = judged(batches=0, parked={"batch": "backpressure", "score": "input", "sink": "backpressure"}, **PRESSED)
    assert verdict.stage == "sink"
    assert "took nothing" in verdict.sentence


def test_a_call_of_the_model_that_doesn_t_end() -> None:
    verdict = judged(batches=0, parked={"batch": "backpressure", "score": None, "sink": "input"}, **PRESSED)
    assert verdict.stage == "score"
    assert knob_of(verdict) == ("batch.max_records", "lower", 512, 64)


@pytest.mark.parametrize(
    ("sink", "batch", "knob"),
    [
        ({"type": "tcp"}, 512, None),
        ({"type": "file", "compression": "none"}, 512, None),
        ({"type": "file", "compression": "gzip"}, 512, ("sink.scores.compression", "change", "gzip", "none")),
        ({"type": "http"}, 64, ("batch.max_records", "raise", 64, 512)),
        ({"type": "http"}, 512, None),
    ],
)
def test_a_slow_sink(sink: dict[str, Any], batch: int, knob: Any) -> None:
    settings = {"sink.scores": sink, "batch.max_records": batch}
    verdict = judged(busy={"sink": 0.95, "decode": 0.3}, mean_records=float(batch), settings=settings, **PRESSED)
    assert (verdict.stage, knob_of(verdict)) == ("sink", knob)


def test_batches_that_are_closed_too_small_by_count_or_by_bytes() -> None:
    work = {"decode": 0.1, "score": 0.1}
    verdict = judged(mean_records=4.0, batches=5000, busy=work, settings={"batch.max_records": 4}, **PRESSED)
    assert (verdict.stage, knob_of(verdict)) == ("batch", ("batch.max_records", "raise", 4, 512))
    by_bytes = {"size": 0, "bytes": 5000}
    settings = {"batch.max_bytes": 1024}
    verdict = judged(mean_records=4.0, batches=5000, busy=work, triggers=by_bytes, settings=settings, **PRESSED)
    assert (verdict.stage, knob_of(verdict)) == ("batch", ("batch.max_bytes", "raise", 1024, 8192))


def test_small_batches_that_take_the_model_long_are_the_model_s() -> None:
    settings = {"batch.max_records": 4}
    verdict = judged(mean_records=4.0, batches=100, busy={"score": 0.95}, settings=settings, **PRESSED)
    assert (verdict.stage, knob_of(verdict)) == ("score", ("batch.max_records", "raise", 4, 32))


def test_a_model_that_waits_wants_more_workers() -> None:
    verdict = judged(busy={"score": 0.95}, cores=0.05, **PRESSED)
    assert (verdict.stage, knob_of(verdict)) == ("score", ("workers.count", "raise", 1, 2))
    verdict = judged(busy={"score": 0.95}, cores=0.05, settings={"workers.executor": "inline"}, **PRESSED)
    assert knob_of(verdict) == ("workers.executor", "change", "inline", "thread")


def test_a_model_that_computes_wants_the_other_cpus() -> None:
    verdict = judged(busy={"score": 0.95}, cores=1.1, **PRESSED)
    assert (verdict.stage, knob_of(verdict)) == ("score", ("workers.count", "raise", 1, 4))


def test_all_cpus_in_use_want_less_work() -> None:
    verdict = judged(busy={"score": 3.8}, workers=4, cores=3.9, **PRESSED)
    assert (verdict.stage, verdict.knob) == ("score", None)
    assert "All 4 CPUs are in use" in verdict.sentence


@pytest.mark.parametrize("stage", ["decode", "validate", "encode"])
def test_threads_that_take_turns_at_the_lock_want_no_more_threads(stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "EXECUTORS", ("inline", "thread"))
    settings = {"workers.count": 2}
    verdict = judged(busy={stage: 1.6, "score": 0.2}, workers=2, cores=1.0, settings=settings, **PRESSED)
    assert verdict.stage == stage
    assert "more threads will not help" in verdict.sentence
    part = "sink.scores" if stage == "encode" else "source.rides_in"
    assert knob_of(verdict) == (f"{part}.format", "change", "jsonl", "arrow")


def test_threads_that_take_turns_want_processes_where_there_are_some(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "EXECUTORS", ("inline", "thread", "process"))
    verdict = judged(busy={"decode": 1.6}, workers=2, cores=1.0, **PRESSED)
    assert knob_of(verdict) == ("workers.executor", "change", "thread", "process")


def test_threads_at_the_lock_limit_though_reading_starves_and_no_input_waits() -> None:
    verdict = judged(busy={"decode": 0.6}, workers=2, cores=1.0)
    assert verdict.stage == "decode"


def test_one_busy_worker_gets_along_with_less_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "EXECUTORS", ("inline", "thread"))
    settings = {"batch.max_records": 128}
    verdict = judged(busy={"decode": 0.9}, cores=1.0, mean_records=128.0, settings=settings, **PRESSED)
    assert (verdict.stage, knob_of(verdict)) == ("decode", ("batch.max_records", "raise", 128, 512))


def test_checkpoints_without_end() -> None:
    verdict = judged(syncing=0.9, settings={"delivery.checkpoint_interval": 0.05}, **PRESSED)
    assert (verdict.stage, knob_of(verdict)) == ("state", ("delivery.checkpoint_interval", "raise", 0.05, 1.0))


def test_memory_that_is_used_up() -> None:
    verdict = judged(memory_fill=0.95, blocked=0.9)
    assert (verdict.stage, knob_of(verdict)) == ("queue", ("limits.memory", "raise", 256 << 20, 512 << 20))


def test_a_queue_that_can_t_hold_the_next_batch() -> None:
    verdict = judged(blocked=0.9, settings={"queue.max_records": 512})
    assert (verdict.stage, knob_of(verdict)) == ("queue", ("queue.max_records", "raise", 512, 4096))


def test_a_wait_too_short_to_fill_a_batch() -> None:
    changes: dict[str, Any] = {"mean_records": 3.0, "triggers": {"size": 0, "time": 900}, "cores": 0.9}
    verdict = judged(settings={"batch.max_wait": 0.001}, **changes)
    assert (verdict.stage, knob_of(verdict)) == ("batch", ("batch.max_wait", "raise", 0.001, 0.02))
    assert judged(settings={"batch.max_wait": 0.05}, **changes).stage == "nothing"


def test_reading_that_takes_all_the_loop_can_give() -> None:
    verdict = judged(cores=0.95, rates={**load_of().rates, "received": 1e6}, busy={"decode": 0.1})
    assert (verdict.stage, verdict.knob) == ("source", None)


def test_who_is_behind_without_being_busy_is_told_so() -> None:
    verdict = judged(busy={"decode": 0.3, "sink": 0.1}, **PRESSED)
    assert (verdict.stage, verdict.knob) == ("decode", None)
    assert "not all the time" in verdict.sentence


def test_every_rule_says_why_it_stands_where_it_stands() -> None:
    assert all(rule.reason for rule in RULES)
    assert len({rule.judge for rule in RULES}) == len(RULES)


shares = st.floats(0.0, 1.0)
parked = st.sampled_from([None, "input", "backpressure", "retry"])


@st.composite
def loads(draw: st.DrawFn) -> Load:
    workers, max_records = draw(st.integers(1, 8)), draw(st.sampled_from([1, 4, 64, 512, 65536]))
    batches = draw(st.integers(0, 10_000))
    return load_of(
        workers=workers,
        batches=batches,
        mean_records=draw(shares) * max_records if batches else 0.0,
        busy={stage: draw(shares) * workers / 5 for stage in WORKER_STAGES} | {"sink": draw(shares)},
        triggers=draw(st.dictionaries(st.sampled_from(["size", "bytes", "time"]), st.integers(0, 1000))),
        cores=draw(st.floats(0.0, 4.0)),
        cpus=draw(st.integers(1, 4)),
        blocked=draw(shares),
        syncing=draw(shares),
        queue_fill=draw(shares),
        memory_fill=draw(shares),
        parked={name: draw(parked) for name in ("batch", "score", "sink")},
        settings={
            "batch.max_records": max_records,
            "batch.max_wait": draw(st.sampled_from([None, 0.0, 0.05])),
            "workers.executor": draw(st.sampled_from(["inline", "thread"])),
            "workers.count": workers,
            "sink.scores": draw(
                st.sampled_from([{"type": "http"}, {"type": "file", "format": "csv"}, {"type": "none"}])
            ),
        },
    )


@given(loads())
def test_there_is_a_verdict_whatever_the_load_and_its_knob_changes_something(load: Load) -> None:
    verdict = judge(load)
    assert verdict is not None
    assert verdict.sentence.endswith(".")
    assert verdict.evidence
    knob = verdict.knob
    if knob is None:
        return
    assert knob.now != knob.to
    if knob.direction != "change":
        assert (knob.to > knob.now) == (knob.direction == "raise")
    section, _, key = knob.key.partition(".")
    if section in OPTIONS:
        OPTIONS[section](**{key: knob.to})
