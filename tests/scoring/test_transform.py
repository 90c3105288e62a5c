"""Every record of a batch ends as exactly one of: a score, a reject, a filtered row."""

import math
from typing import Any

import anyio
import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streambatch.core.chunks import Partition
from streambatch.core.errors import ModelError, ShapeError, StepError
from streambatch.core.outcomes import Outcome
from streambatch.core.types import FloatArray
from streambatch.core.wrapping_scoring import WrappedStatefulStep
from streambatch.scoring.calling import stepped_on
from streambatch.scoring.transform import Transform
from streambatch.steps.running import RunningStandardize
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
        return await transform.run_async(batch_of(numbers(1, 2, 3)), lambda: 0.0)

    outcome = anyio.run(scenario)
    assert ids(outcome) == ["1", "3"]
    assert [reject.record for reject in outcome.rejects] == [b"2"]


@pytest.mark.parametrize("error", [MemoryError(), RecursionError("deep"), SystemExit(3), GeneratorExit()], ids=repr)
def test_whatever_a_model_raises_on_a_record_is_that_records_alone(error: BaseException) -> None:
    class Raising:
        def score(self, x: FloatArray) -> FloatArray:
            if 3.0 in x[:, 0]:
                raise error
            return x[:, 0]

    class RaisingLater(Raising):
        async def score(self, x: FloatArray) -> FloatArray:  # type: ignore[override]
            return super().score(x)

    async def later() -> Outcome:
        return await transform_of(RaisingLater()).run_async(batch_of(numbers(*range(8))), lambda: 0.0)

    for outcome in (run(transform_of(Raising()), numbers(*range(8))), anyio.run(later)):
        assert outcome.scored == {"in": 7}
        (reject,) = outcome.rejects
        assert (reject.record, reject.reason) == (b"3", "model_error")
        assert type(error).__name__ in reject.error


def test_an_interrupt_from_the_keyboard_is_no_records_fault() -> None:
    class Interrupted:
        def score(self, x: FloatArray) -> FloatArray:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(transform_of(Interrupted()), numbers(1))


def test_the_outcome_says_which_records_were_scored() -> None:
    assert run(transform_of(Doubling()), numbers(1, 2)).index is None
    index = run(transform_of(Doubling(2)), numbers(1, 2, 3)).index
    assert index is not None
    assert index.tolist() == [0, 2]


class Summing:
    """A step with memory: each record becomes the sum of all up to it."""

    is_stateful = True
    name = "summing"

    def initial_state(self) -> float:
        return 0.0

    def __call__(self, state: float, x: FloatArray) -> tuple[float, FloatArray]:
        y = state + np.cumsum(x, axis=0)
        return float(y[-1, 0]), y

    def dump(self, state: float) -> bytes:
        return state.hex().encode()

    def load(self, data: bytes) -> float:
        return float.fromhex(data.decode())


def test_a_step_with_memory_gets_its_state_back() -> None:
    transform = transform_of(Doubling(), [Summing()])
    assert transform.is_ordered
    outcomes = [run(transform, numbers(1, 2), sequence=0), run(transform, numbers(3), sequence=1)]
    assert b"".join(outcome.payload for outcome in outcomes) == b"1=2.0|1\n2=6.0|2\n3=12.0|3\n"
    assert [outcome.states for outcome in outcomes] == [(3.0,), (6.0,)]


class Remembering:
    """A step with memory, before the first record none, that makes of rows what `change` does."""

    is_stateful = True
    name = "remembering"

    def __init__(self, change: Any) -> None:
        self.change = change

    def initial_state(self) -> Any:
        return None

    def __call__(self, state: Any, x: FloatArray) -> tuple[Any, FloatArray]:
        return float(x[-1, 0]), self.change(x)


def test_memory_may_be_none_at_first() -> None:
    outcome = run(transform_of(Doubling(), [Remembering(lambda x: x)]), numbers(1, 2))
    assert (outcome.payload, outcome.states) == (b"1=2.0|1\n2=4.0|2\n", (2.0,))


def test_a_step_with_memory_may_write_to_what_it_gets() -> None:
    x = np.array([[1.0], [2.0]])
    x.flags.writeable = False  # as those of a table are
    step = WrappedStatefulStep(Remembering(lambda x: np.negative(x, out=x)))
    assert stepped_on(step, None, x)[1].tolist() == [[-1.0], [-2.0]]


@pytest.mark.parametrize("change", [lambda x: x[1:], lambda x: x[0, 0], lambda x: np.concatenate([x, x])])
def test_a_step_with_memory_that_loses_rows_ends_the_run(change: Any) -> None:
    with pytest.raises(ShapeError, match=r"step remembering: expected shape \(2, \.\.\.\)"):
        run(transform_of(Doubling(), [Remembering(change)]), numbers(1, 2))


def test_without_memory_there_is_no_state_to_keep() -> None:
    transform = transform_of(Doubling(), [lambda x: x])
    outcome = run(transform, numbers(1))
    assert outcome.states is None
    assert transform.dump(outcome.states) == b""
    transform.restore(b"")
    transform.restore(None)


def test_states_go_on_after_a_restart_where_the_outcome_was() -> None:
    steps = [lambda x: x, Summing(), RunningStandardize()]
    whole = transform_of(Doubling(), steps)
    wanted = [run(whole, numbers(at, at + 1), sequence=at).payload for at in range(4)]
    first = transform_of(Doubling(), steps)
    outcomes = [run(first, numbers(at, at + 1), sequence=at) for at in range(3)]
    second = transform_of(Doubling(), steps)
    second.restore(first.dump(outcomes[1].states))
    again = [run(second, numbers(at, at + 1), sequence=at).payload for at in (2, 3)]
    assert again == wanted[2:]


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ([Summing()], [Summing(), RunningStandardize()], "step standardize: expected the stored state of summing, st"),
        ([Summing(), RunningStandardize()], [Summing()], "found that of summing, standardize"),
        ([Summing()], [], "expected the stored state of no step, found that of summing"),
        ([RunningStandardize().bind((2,), "f8")], [RunningStandardize().bind((3,), "f8")], "its stored statistics are"),
        ([Summing()], [type("Shy", (Summing,), {"load": lambda self, data: 1 / 0})()], "summing: its stored state doe"),
    ],
)  # fmt: skip
def test_the_state_of_other_steps_is_refused(before: Any, after: Any, message: str) -> None:
    first = transform_of(Doubling(), before)
    states = tuple(step(step.initial_state(), np.ones((1, 2)))[0] for step in before)
    with pytest.raises(StepError) as caught:
        transform_of(Doubling(), after).restore(first.dump(states))
    assert message in str(caught.value)


@pytest.mark.parametrize("data", [b"nonsense", msgspec.msgpack.encode([2, []])])
def test_what_is_no_state_is_refused(data: bytes) -> None:
    message = "step summing: its (stored state can't be read|state was stored in version 2)"
    with pytest.raises(StepError, match=message):
        transform_of(Doubling(), [Summing()]).restore(data)


def test_memory_that_can_not_be_stored_is_noticed_at_the_start() -> None:
    class Forgetful:
        is_stateful = True

        def initial_state(self) -> int:
            return 0

        def __call__(self, state: int, x: FloatArray) -> tuple[int, FloatArray]:
            return state, x

    with pytest.raises(StepError, match=r"step Forgetful: it has memory, but no dump\(state\) and load\(data\)"):
        transform_of(Doubling(), [Forgetful()]).restore(None)
