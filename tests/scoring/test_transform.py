"""Every record of a batch ends as exactly one of: a score, a reject, a filtered row."""

import math
from typing import Any

import anyio
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streambatch.errors import ModelError
from streambatch.records import FloatArray, Outcome, Partition
from streambatch.scoring.transform import Transform
from tests.chunks import chunk_of
from tests.scoring.fakes import Doubling, batch_of, numbers, transform_of


def run(transform: Transform, *chunks: Any, sequence: int = 1) -> Outcome:
    return transform.run(batch_of(*chunks, sequence=sequence), lambda: 0.0)


def ids(outcome: Outcome) -> list[str]:
    return [line.partition("=")[0] for line in outcome.payload.decode().splitlines()]


def test_scores_rows_in_order_with_what_they_carry() -> None:
    outcome = run(transform_of(Doubling()), numbers(3, 1, 2))
    assert outcome.payload == b"3=6.0|3\n1=2.0|1\n2=4.0|2\n"
    assert (outcome.scored, outcome.rejects, outcome.filtered) == ({"in": 3}, [], {})


@given(
    kinds=st.lists(st.sampled_from(["good", "bad", "poison", "step", "filtered", "nan"]), min_size=1, max_size=40),
    cut=st.integers(1, 40),
)
def test_every_record_ends_as_exactly_one_thing(kinds: list[str], cut: int) -> None:
    lines = [b"bad%d" % at if kind == "bad" else b"%d" % at for at, kind in enumerate(kinds)]
    places = {kind: [at for at, one in enumerate(kinds) if one == kind] for kind in set(kinds)}

    def step(x: FloatArray) -> tuple[FloatArray, Any]:
        if set(x[:, 0].tolist()) & set(places.get("step", [])):
            raise KeyError("step")
        return x, ~np.isin(x[:, 0], places.get("filtered", []))

    class Model(Doubling):
        def score(self, x: FloatArray) -> FloatArray:
            scores = super().score(x)
            return np.where(np.isin(x[:, 0], places.get("nan", [])), math.nan, scores)

    chunks = [chunk_of(part) for part in (lines[:cut], lines[cut:]) if part]
    outcome = run(transform_of(Model(*places.get("poison", [])), [step]), *chunks)

    assert ids(outcome) == [str(at) for at in places.get("good", [])]
    assert outcome.scored == {"in": len(places.get("good", []))}
    assert sum(outcome.filtered.values()) == len(places.get("filtered", []))
    wanted = {"bad": "invalid_json", "poison": "model_error", "step": "step_error", "nan": "non_finite_score"}
    assert [(r.index, r.reason) for r in outcome.rejects] == [
        (at, wanted[kind]) for at, kind in enumerate(kinds) if kind in wanted
    ]
    assert all(reject.record == lines[reject.index] for reject in outcome.rejects)


def test_a_reject_says_where_it_was_and_what_failed() -> None:
    outcome = run(transform_of(Doubling(7)), chunk_of([b"1"], base=100), chunk_of([b"5", b"7"], base=900))
    (reject,) = outcome.rejects
    assert (reject.index, reject.position, reject.record, reject.id) == (2, 904, b"7", "7")
    assert (reject.stage, reject.error) == ("score", "model m: ValueError: poison")


def test_one_poison_record_in_512_costs_one_dead_letter_and_at_most_19_further_calls() -> None:
    model = Doubling(300)
    outcome = run(transform_of(model), numbers(*range(512)))
    assert len(outcome.rejects) == 1
    assert outcome.scored == {"in": 511}
    assert model.calls - 1 <= 19


def test_a_first_batch_that_fails_whole_is_a_wrong_model() -> None:
    with pytest.raises(ModelError, match="model m: failed on the whole first batch: ValueError: poison"):
        run(transform_of(Doubling(1, 2)), numbers(1, 2), sequence=0)
    outcome = run(transform_of(Doubling(1, 2)), numbers(1, 2), sequence=1)
    assert [reject.reason for reject in outcome.rejects] == ["model_error"] * 2


@pytest.mark.parametrize("bad", ["too_few", "scalar", "text"])
def test_a_wrong_number_of_scores_is_an_error_that_names_the_model_and_both_shapes(bad: str) -> None:
    class Wrong:
        def score(self, x: FloatArray) -> Any:
            return {"too_few": x[:-1, 0], "scalar": 1.0, "text": np.array(["a"] * len(x))}[bad]

    with pytest.raises(ModelError, match=r"model m: .*ShapeError|model m: .*ModelError|model m: .*found") as caught:
        run(transform_of(Wrong()), numbers(1, 2), sequence=0)
    assert "m" in str(caught.value)


@pytest.mark.parametrize("step", [lambda x: x[:-1], lambda x: (x, np.ones(1, bool))], ids=["rows", "mask"])
def test_a_step_that_loses_rows_is_caught(step: Any) -> None:
    outcome = run(transform_of(Doubling(), [step]), numbers(1, 2, 3))
    assert outcome.payload == b"" or outcome.rejects == []
    assert sum(outcome.scored.values()) + len(outcome.rejects) == 3


def test_counts_go_to_the_source_each_record_came_from() -> None:
    transform = transform_of(Doubling(4), sources=("a", "b"))
    chunks = [
        chunk_of([b"1", b"bad"], partition=Partition("a", "p")),
        chunk_of([b"3", b"4", b"5"], partition=Partition("b", "p")),
        chunk_of([b"6"], partition=Partition("a", "p")),
    ]
    outcome = run(transform, *chunks)
    assert outcome.scored == {"a": 2, "b": 2}
    assert [(r.index, r.partition.source, r.record) for r in outcome.rejects] == [(1, "a", b"bad"), (3, "b", b"4")]


def test_an_async_model_is_isolated_the_same_way() -> None:
    class Model(Doubling):
        async def score(self, x: FloatArray) -> FloatArray:  # type: ignore[override]
            await anyio.lowlevel.checkpoint()
            return super().score(x)

    async def scenario() -> Outcome:
        transform = transform_of(Model(2))
        prepared = transform.prepare(batch_of(numbers(1, 2, 3)), lambda: 0.0)
        return transform.finish(prepared, await transform.score_async(prepared))

    outcome = anyio.run(scenario)
    assert ids(outcome) == ["1", "3"]
    assert [reject.record for reject in outcome.rejects] == [b"2"]


def test_a_step_with_memory_gets_its_state_back() -> None:
    class Running:
        is_stateful = True

        def initial_state(self) -> float:
            return 0.0

        def __call__(self, state: float, x: FloatArray) -> tuple[float, FloatArray]:
            y = state + np.cumsum(x, axis=0)
            return float(y[-1, 0]), y

    transform = transform_of(Doubling(), [Running()])
    assert transform.is_ordered
    outcomes = [run(transform, numbers(1, 2), sequence=0), run(transform, numbers(3), sequence=1)]
    assert b"".join(outcome.payload for outcome in outcomes) == b"1=2.0|1\n2=6.0|2\n3=12.0|3\n"
