"""Functions, objects, classes and options of other people become steps and models, which say what they can do."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest

import streambatch as sb
from streambatch.core.errors import ModelError, ShapeError, StepError
from streambatch.core.parts import Model, Site, Step
from streambatch.core.types import FloatArray
from streambatch.core.wrapping_scoring import as_model, as_step
from streambatch.steps.elementwise import StandardizeOptions
from streambatch.steps.running import RunningStandardize

X = np.array([[1.0, 2.0], [3.0, 4.0]])
RECORD = sb.RecordSchema(id="id", features="x", shape=(2,), dtype="float64")
LINES = b'{"id": 1, "x": [1, 2]}\n{"id": 2, "x": [3, 4]}\n'


def total(x: FloatArray) -> Any:
    return x.sum(axis=1)


async def awaited_total(x: FloatArray) -> Any:
    return x.sum(axis=1)


def halves(x: FloatArray) -> FloatArray:
    return x / 2


class Total:
    digest, parameters, format = "d1", 3, "total"

    def __init__(self, factor: float = 1.0) -> None:
        self.factor = factor

    @classmethod
    def load(cls) -> Self:
        return cls(2.0)

    def score(self, x: FloatArray) -> Any:
        return x.sum(axis=1) * self.factor


class AwaitedTotal:
    async def score(self, x: FloatArray) -> Any:
        return x.sum(axis=1)


class Marked:
    """Async, though nothing but its attribute tells: its `score` is a plain function that returns an awaitable."""

    is_async = True

    def score(self, x: FloatArray) -> Any:
        return awaited_total(x)


class Counting:
    name = "counting"
    is_stateful = True

    def initial_state(self) -> int:
        return 0

    def __call__(self, state: int, x: FloatArray) -> tuple[int, FloatArray]:
        return state + len(x), x + state


class StoredCounting(Counting):
    def dump(self, state: int) -> bytes:
        return str(state).encode()

    def load(self, data: bytes) -> int:
        return int(data)


@dataclass(frozen=True)
class FactorOptions:
    path: str = "factor"

    def build(self, site: Site) -> Any:
        return Total(float((site.folder / self.path).read_text()))


class HalvesOptions:
    def build(self, site: Site) -> Any:
        return halves


@pytest.mark.parametrize(
    ("model", "is_async", "scores"),
    [
        (total, False, [3.0, 7.0]),
        (lambda x: x[:, 0], False, [1.0, 3.0]),
        (awaited_total, True, [3.0, 7.0]),
        (Total(), False, [3.0, 7.0]),
        (Total, False, [6.0, 14.0]),
        (AwaitedTotal(), True, [3.0, 7.0]),
        (Marked(), True, [3.0, 7.0]),
        (sb.LinearModel([1.0, 1.0]), False, [3.0, 7.0]),
    ],
)
@pytest.mark.parametrize("executor", ["inline", "thread"])
@pytest.mark.anyio
async def test_whatever_scores_is_a_model(model: Any, is_async: bool, scores: list[float], executor: Any) -> None:
    assert as_model(model).build(Site()).is_async == is_async
    sink = sb.MemorySink()
    await sb.Pipeline(
        sources=[sb.MemorySource([LINES])],
        record=RECORD,
        model=model,
        sink=sink,
        workers=sb.Workers(executor=executor),
    ).run()
    assert b"".join(sink.payloads) == b"".join(b'{"id":%d,"score":%.1f}\n' % (n, s) for n, s in enumerate(scores, 1))


@pytest.mark.anyio
async def test_options_are_built_by_the_pipeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("factor").write_text("10")
    sink = sb.MemorySink()
    await sb.Pipeline(
        sources=[sb.MemorySource([LINES])],
        record=RECORD,
        preprocess=[HalvesOptions()],
        model=FactorOptions(),
        sink=sink,
    ).run()
    assert b"".join(sink.payloads) == b'{"id":1,"score":15.0}\n{"id":2,"score":35.0}\n'


def test_a_wrapped_model_says_what_its_object_says() -> None:
    model = as_model(Total()).build(Site())
    assert (model.name, model.digest, model.parameters, model.format) == ("Total", "d1", 3, "total")
    assert not model.keeps_input
    model = as_model(total).build(Site())
    assert (model.name, model.digest, model.parameters, model.format) == (f"{__name__}:total", None, None, None)
    assert as_model(FactorOptions()).location == "factor"


def test_a_wrapped_step_says_what_its_object_says() -> None:
    step = as_step(halves).build(Site())
    assert not step.is_stateful
    assert (step.name, step.keeps_input, step.keeps_shape) == (f"{__name__}:halves", False, False)
    counting, stored = as_step(Counting()).build(Site()), as_step(StoredCounting()).build(Site())
    assert counting.is_stateful
    assert stored.is_stateful
    assert (counting.name, counting.is_storable, stored.is_storable) == ("counting", False, True)
    assert stored.load(stored.dump(stored(stored.initial_state(), X)[0])) == 2


def test_parts_are_taken_as_they_are_and_wrapped_once() -> None:
    for step in (sb.Clip(0, 1), as_step(halves), as_step(Counting())):
        assert as_step(step) is step
        assert step.build(Site()) is step
    for model in (sb.LinearModel([1.0]), as_model(total)):
        assert as_model(model) is model
        assert model.build(Site()) is model


def test_two_wrappings_of_one_step_are_the_same_step() -> None:
    step = Counting()
    assert as_step(step) == as_step(step)
    assert as_step(step) != as_step(Counting())
    assert as_step(halves) == as_step(halves)


def test_what_is_no_part_is_refused_where_it_comes_in() -> None:
    with pytest.raises(ModelError, match=r"model int: expected a function of x, an object with score\(x\)"):
        as_model(3)
    with pytest.raises(ModelError, match="expected a function of one array x"):
        as_model(lambda: 0)
    with pytest.raises(StepError, match="expected a function of x, found 3"):
        as_step(3)
    with pytest.raises(StepError, match="expected a function, found an async one"):
        as_step(awaited_total)


@pytest.mark.parametrize(
    "step",
    [
        sb.Standardize([1.0, 2.0], 2.0),
        sb.MinMax(0, [1.0, 2.0]),
        sb.Clip(0.0, 2.5),
        sb.Impute(0.0),
        sb.PythonStep(halves),
        as_step(halves),
    ],
)
def test_steps_are_values_that_pickle(step: Step) -> None:
    before = step(X)
    again: Step = pickle.loads(pickle.dumps(step))
    np.testing.assert_array_equal(again(X), before)
    assert again.name == step.name
    assert isinstance(again.bind((2,), np.dtype("f8")), Step)


def test_steps_with_memory_pickle() -> None:
    for options in (StoredCounting(), StandardizeOptions(fit="running"), RunningStandardize()):
        step = as_step(pickle.loads(pickle.dumps(as_step(options)))).build(Site())
        assert step.is_stateful
        _, y = step(step.initial_state(), X)
        assert y.shape == X.shape


@pytest.mark.parametrize(
    "model", [sb.LinearModel([1.0, 2.0], 3.0), sb.PythonModel(total), sb.PythonModel(Total, name="t"), as_model(total)]
)
def test_models_are_values_that_pickle(model: Model) -> None:
    again: Model = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(again.score(X), model.score(X))
    assert (again.name, again.digest, again.is_async) == (model.name, model.digest, model.is_async)


def test_a_step_that_is_bound_refuses_other_shapes_also_once_pickled() -> None:
    bound = sb.Standardize([1.0, 2.0], 2.0).bind((2,), "f8")
    with pytest.raises(ShapeError):
        pickle.loads(pickle.dumps(bound))(np.zeros((1, 3)))


@pytest.mark.anyio
async def test_a_model_whose_score_is_a_coroutine_function_is_async() -> None:
    class Awaited(Model):
        name = "awaited"

        async def score(self, x: FloatArray, /) -> Any:
            return x.sum(axis=1)

    class Derived(Awaited):
        name = "derived"

    assert (Awaited().is_async, Derived().is_async, sb.LinearModel([1.0, 2.0]).is_async) == (True, True, False)
    pipeline = sb.Pipeline(
        sources=[sb.MemorySource([LINES])], record=RECORD, model=Derived(), sink=(sink := sb.MemorySink())
    )
    assert (await pipeline.run()).records["scored"] == 2
    assert sink.data() == b'{"id":1,"score":3.0}\n{"id":2,"score":7.0}\n'
