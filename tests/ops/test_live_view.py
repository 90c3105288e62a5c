"""What a watcher sees of a pipeline, from statuses as they come."""

from __future__ import annotations

import json
from math import isclose

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streambatch.ops.live_view import HISTORY_POINTS, RATE_SECONDS, LiveView
from streambatch.ops.load import load_between
from tests.ops.loads import status_of


def test_before_the_first_status_there_is_nothing_to_show() -> None:
    view = LiveView().view()
    assert (view["is_up"], view["down"], view["pipeline"]) == (False, None, None)
    assert set(view["rates"].values()) == {0.0}
    assert view["history"]["at"] == []


def test_rates_are_differences_over_the_pipelines_own_time() -> None:
    live = LiveView()
    live.update(status_of(seconds=10.0, records=1000), 50.0)
    assert live.view()["rates"]["scored"] == 0.0
    live.update(status_of(seconds=12.0, records=5000), 99.0)
    view = live.view()
    assert (view["is_up"], view["at"], view["seconds"]) == (True, 99.0, 2.0)
    assert view["rates"]["received"] == view["rates"]["scored"] == 2000.0
    assert view["rates"]["bytes"] == 200_000.0
    assert view["latency_seconds"] == {"p50": 0.01, "p95": 0.02, "p99": 0.02}
    assert view["queue"]["fill"] == 0.25
    assert isclose(view["process"]["cores"], 0.8)
    assert view["batch"] == {
        "mean_records": 100.0, "max_records": 512, "fill": 100 / 512, "triggers": {"size": 1.0, "time": 0.0},
    }  # fmt: skip
    assert {stage["stage"]: round(stage["busy"], 6) for stage in view["stages"]}["score"] == 0.5
    assert [(part["part"], round(part["share"], 6)) for part in view["latency_parts"]] == [
        ("wait_queue", 0.25),
        ("score", 0.75),
    ]


def test_rates_are_taken_over_the_last_seconds() -> None:
    live = LiveView()
    for second in range(20):
        live.update(status_of(seconds=float(second), records=100 * second + (10_000 if second > 5 else 0)), second)
    assert live.view()["seconds"] == RATE_SECONDS
    assert live.view()["rates"]["scored"] == 100.0


def test_a_new_run_begins_at_nothing() -> None:
    live = LiveView()
    live.update(status_of(seconds=10.0, records=5000), 1.0)
    live.update(status_of(run="run-2", seconds=1.0, records=10), 2.0)
    assert live.view()["rates"]["scored"] == 0.0
    live.update(status_of(run="run-2", seconds=2.0, records=30), 3.0)
    assert live.view()["rates"]["scored"] == 20.0


def test_down_says_why_and_since_when_and_comes_back() -> None:
    live = LiveView()
    live.lost("connection refused", 5.0)
    live.lost("no answer", 6.0)
    assert live.view()["down"] == {"error": "no answer", "since": 5.0}
    live.update(status_of(seconds=1.0), 7.0)
    assert (live.view()["is_up"], live.view()["down"]) == (True, None)
    live.lost("connection refused", 8.0)
    view = live.view()
    assert (view["is_up"], view["down"]["since"], view["pipeline"]) == (False, 8.0, "rides")
    assert view["history"]["queue_fill"] == [None, None, 0.25, None]


@given(st.lists(st.one_of(st.none(), st.tuples(st.sampled_from("ab"), st.integers(0, 50))), max_size=200))
def test_a_view_is_json_and_its_histories_are_bounded_whatever_comes(events: list[tuple[str, int] | None]) -> None:
    live = LiveView()
    for now, event in enumerate(events):
        if event is None:
            live.lost("gone", now)
        else:
            live.update(status_of(run=event[0], seconds=float(event[1]), records=100 * event[1]), now)
    view = json.loads(json.dumps(live.view()))
    lengths = {len(values) for values in view["history"].values()}
    assert lengths == {min(len(events), HISTORY_POINTS)}
    assert all(0 <= stage["busy"] <= 1 for stage in view["stages"])


def test_statuses_of_two_runs_or_of_one_moment_have_no_difference() -> None:
    now = status_of(seconds=5.0)
    assert load_between(now, now) is None
    assert load_between(status_of(run="other", seconds=1.0), now) is None


@given(st.dictionaries(st.sampled_from([f"{0.001 * 1.1**n:.3g}" for n in range(60)]), st.integers(1, 1000), min_size=1))
def test_quantiles_are_the_least_bounds_that_enough_records_kept(counts: dict[str, int]) -> None:
    load = load_between(status_of(latency_buckets={}), status_of(seconds=1.0, latency_buckets=counts))
    assert load is not None
    total = sum(counts.values())
    for name, share in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99)):
        within = sum(count for bound, count in counts.items() if float(bound) <= load.latency[name])
        below = sum(count for bound, count in counts.items() if float(bound) < load.latency[name])
        assert below < share * total <= within


@pytest.mark.parametrize("field", ["records", "bytes"])
def test_a_queue_is_as_full_as_its_fuller_measure(field: str) -> None:
    queue = {"records": 1, "bytes": 1, "capacity_records": 100, "capacity_bytes": 100, field: 80}
    live = LiveView()
    live.update(status_of(queue=queue), 0.0)
    assert live.view()["queue"]["fill"] == 0.8
