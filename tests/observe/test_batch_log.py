"""Latencies: weighted by the records scored, in parts that add up."""

from __future__ import annotations

from bisect import bisect_left
from math import inf

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram, generate_latest

from streambatch.core.batches import Batch
from streambatch.core.outcomes import Outcome
from streambatch.observe import batch_log as module
from streambatch.observe.batch_log import Buckets
from streambatch.observe.catalogue import SECONDS
from tests.observe.batches import EARLY, LATE, TIMES, batch_of, outcome_of, scored_batches
from tests.observe.scrapes import Scrape, Scraped, parts_of


def written(*batches: tuple[Batch, Outcome]) -> Scrape:
    scraped = Scraped()
    for sequence, (batch, outcome) in enumerate(batches):
        batch.sequence = sequence
        scraped.observer.batch_written(batch, outcome)
        scraped.observer.batch_acked(batch, outcome)
    return scraped.scrape()


@given(st.lists(scored_batches(), max_size=5))
def test_the_parts_add_up_to_the_whole_and_every_scored_record_counts_once(
    batches: list[tuple[Batch, Outcome]],
) -> None:
    scrape = written(*batches)
    whole = scrape.value("end_to_end_latency_seconds_sum")
    scored = sum(sum(outcome.scored.values()) for _, outcome in batches)
    assert sum(parts_of(scrape).values()) == pytest.approx(whole, rel=1e-9, abs=1e-6)
    assert scrape.value("end_to_end_latency_seconds_count") == scored
    assert scrape.value("ack_latency_seconds_count") == scored
    assert scrape.values("wait_seconds_count", at="queue") == [scored]
    assert scrape.values("stage_duration_seconds_count", stage="score") == [scored]


def test_each_part_is_the_difference_of_two_timestamps() -> None:
    batch = batch_of([(2, EARLY), (1, LATE)], TIMES)
    scrape = written((batch, outcome_of(batch)))
    assert parts_of(scrape) == {
        "source": 2 * 0.5 + 0.0,
        "queue": 2 * 1.5 + 0.5,
        "batch": 2 * 1.0 + 0.5,
        "worker": 3 * 0.5,
        "decode": 3 * 0.5,
        "validate": 0.0,
        "preprocess": 3 * 0.25,
        "score": 3 * 0.75,
        "encode": 3 * 0.5,
        "sink_wait": 3 * 0.5,
        "sink": 3 * 0.25,
    }
    assert scrape.value("end_to_end_latency_seconds_sum") == 2 * 6.25 + 4.25
    assert scrape.value("ack_latency_seconds_sum") == 2 * 7.0 + 5.0


def test_a_rejected_record_has_no_latency() -> None:
    batch = batch_of([(2, EARLY), (3, LATE)], TIMES)
    scrape = written((batch, outcome_of(batch, rejects=[(1, "decode"), (2, "score"), (4, "frame")])))
    assert scrape.value("end_to_end_latency_seconds_sum") == 1 * 6.25 + 1 * 4.25
    assert scrape.value("end_to_end_latency_seconds_count") == 2


def test_filtered_records_have_no_latency_and_leave_those_of_other_sources_alone() -> None:
    batch = batch_of([(2, EARLY)], TIMES, source="one")
    other = batch_of([(3, LATE)], TIMES, source="two")
    both = Batch(0, [*batch.chunks, *other.chunks], 5, 10, "size", batch.stamps)
    scrape = written((both, Outcome(b"", {"one": 2, "two": 1}, [], {"two": 2})))
    assert scrape.value("end_to_end_latency_seconds_sum") == 2 * 6.25 + 1 * 4.25


def test_a_batch_without_a_single_score_counts_for_nothing_but_the_time_it_took() -> None:
    batch = batch_of([(2, EARLY)], TIMES)
    scrape = written((batch, outcome_of(batch, rejects=[(0, "decode"), (1, "decode")])))
    assert scrape.value("end_to_end_latency_seconds_count") == 0
    assert scrape.value("stage_busy_seconds_total", stage="score") == 0.75


def test_folding_often_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    batches = [batch_of([(2, EARLY), (1, LATE)], [time + 3 * at for time in TIMES], sequence=at) for at in range(7)]
    at_once = written(*[(batch, outcome_of(batch)) for batch in batches])
    monkeypatch.setattr(module, "FOLD_BATCHES", 2)
    in_twos = written(*[(batch, outcome_of(batch)) for batch in batches])
    monkeypatch.setattr(module, "FOLD_BATCHES", 1000)
    monkeypatch.setattr(module, "FOLD_CHUNKS", 3)
    by_chunks = written(*[(batch, outcome_of(batch)) for batch in batches])
    for scrape in (in_twos, by_chunks):
        for name in ("end_to_end_latency_seconds_sum", "ack_latency_seconds_sum", "end_to_end_latency_seconds_count"):
            assert scrape.value(name) == at_once.value(name)
        assert dict(parts_of(scrape)) == parts_of(at_once)


def test_noted_times_are_folded_before_there_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FOLD_BATCHES", 8)
    scraped = Scraped()
    most = 0
    for sequence in range(30):
        batch = batch_of([(1, EARLY)], TIMES, sequence=sequence)
        scraped.observer.batch_written(batch, outcome_of(batch))
        scraped.observer.batch_acked(batch, outcome_of(batch))
        batches = scraped.observer.batches
        most = max(most, len(batches._batches), len(batches._chunks), len(batches._acks))
        assert len(batches._unacked) <= 8
    assert most < 8 * module._BATCH_ROW.size
    assert scraped.scrape().value("ack_latency_seconds_count") == 30
    assert len(scraped.observer.batches._unacked) == 0


@given(st.permutations(range(6)), st.sets(st.integers(0, 5)))
def test_batches_are_acked_in_any_order(order: list[int], scraped_after: set[int]) -> None:
    scraped = Scraped()
    batches = [batch_of([(at + 1, EARLY)], [*TIMES[:-1], 20.0 + at], sequence=at) for at in range(6)]
    for batch in batches:
        scraped.observer.batch_written(batch, outcome_of(batch))
    done = []
    for at in order:
        scraped.observer.batch_acked(batches[at], outcome_of(batches[at]))
        done.append(at)
        if at in scraped_after:
            assert scraped.scrape().value("ack_latency_seconds_count") == sum(each + 1 for each in done)
    scrape = scraped.scrape()
    assert scrape.value("ack_latency_seconds_sum") == sum((at + 1) * (13.0 + at) for at in range(6))


@pytest.mark.parametrize("fold_batches", [1, 2, 100])
def test_a_write_of_several_batches_keeps_the_sink_busy_once(
    monkeypatch: pytest.MonkeyPatch, fold_batches: int
) -> None:
    monkeypatch.setattr(module, "FOLD_BATCHES", fold_batches)
    together = [batch_of([(1, EARLY)], TIMES, sequence=at) for at in range(3)]
    later = batch_of([(1, EARLY)], [*TIMES[:7], 20.0, 21.0, 21.0], sequence=3)
    scrape = written(*[(batch, outcome_of(batch)) for batch in (*together, later)])
    assert scrape.value("stage_busy_seconds_total", stage="sink") == 0.25 + 1.0
    assert scrape.value("stage_busy_seconds_total", stage="score") == 4 * 0.75
    assert scrape.value("stage_duration_seconds_sum", stage="sink") == 3 * 0.25 + 1.0


@given(st.lists(st.tuples(st.floats(0, 100) | st.sampled_from(SECONDS), st.integers(0, 3)), max_size=20))
def test_buckets_count_as_the_client_library_does(values: list[tuple[float, int]]) -> None:
    theirs = Histogram("a", "b", buckets=SECONDS, registry=(registry := CollectorRegistry()))
    ours = Buckets(SECONDS)
    for value, times in values:
        ours.add(np.array([[value]]), np.array([times]))
        for _ in range(times):
            theirs.observe(value)
    counts, total = ours.sampled()
    assert total == pytest.approx(sum(value * times for value, times in values))
    text = generate_latest(registry).decode()
    assert [f'a_bucket{{le="{limit}"}} {count}' for limit, count in counts] == [
        line for line in text.splitlines() if line.startswith("a_bucket")
    ]


def test_a_value_on_a_bound_belongs_below_it() -> None:
    for bound in (*SECONDS, inf):
        buckets = Buckets(SECONDS)
        buckets.add_one(min(bound, 1e9))
        counts, _ = buckets.sampled()
        assert [count for _, count in counts].index(1.0) == bisect_left(SECONDS, bound)
