"""The states of a run: each turns only into those that the table names, and the observer is told once."""

from __future__ import annotations

from itertools import product

import pytest

from streambatch.core.clock import SystemClock
from streambatch.core.events import STATES, Observer, PipelineState
from streambatch.pipeline.status import TRANSITIONS, Lifecycle, SourceFailures, new_run_id


class Seen(Observer):
    def __init__(self) -> None:
        self.states: list[PipelineState] = []

    def state_changed(self, state: PipelineState) -> None:
        self.states.append(state)


def in_state(state: PipelineState, seen: Observer) -> Lifecycle:
    lifecycle = Lifecycle(SystemClock(), seen)
    lifecycle.enter(state)
    return lifecycle


@pytest.mark.parametrize(("before", "after"), list(product(STATES, STATES)))
def test_only_what_the_table_says_follows(before: PipelineState, after: PipelineState) -> None:
    seen = Seen()
    lifecycle = in_state(before, Observer())
    lifecycle._observer = seen
    if after in TRANSITIONS[before]:
        lifecycle.enter(after)
        assert (lifecycle.state, seen.states) == (after, [after])
    elif after == before:
        lifecycle.enter(after)
        assert seen.states == []
    else:
        with pytest.raises(ValueError, match=f"a run that is {before} can't be {after}"):
            lifecycle.enter(after)
        assert (lifecycle.state, seen.states) == (before, [])


def test_every_state_is_reached_and_the_last_ones_are_left_no_more() -> None:
    assert set(TRANSITIONS) == set(STATES)
    assert {after for states in TRANSITIONS.values() for after in states} == set(STATES) - {"starting"}
    assert [state for state in STATES if not TRANSITIONS[state]] == ["stopped", "failed"]


def test_the_end_is_told_to_whoever_waits_for_it() -> None:
    lifecycle = in_state("running", Observer())
    assert not lifecycle.ended.is_set()
    lifecycle.end("failed")
    assert (lifecycle.state, lifecycle.ended.is_set()) == ("failed", True)


def test_a_source_is_out_until_it_has_recovered() -> None:
    class Clock(SystemClock):
        def monotonic(self) -> float:
            return 100.0

    failures = SourceFailures(Clock())
    failures.source_failed("rides", OSError("no route"))
    failures.source_failed("loads", OSError("no disk"))
    assert failures.reasons(103.0) == ["no route; held for 3 s", "no disk; held for 3 s"]
    failures.source_recovered("rides")
    failures.source_recovered("rides")
    assert failures.reasons(103.0) == ["no disk; held for 3 s"]


def test_runs_that_begin_in_one_second_have_ids_of_their_own() -> None:
    assert len({new_run_id(SystemClock()) for _ in range(100)}) == 100
