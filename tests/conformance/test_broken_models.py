"""The suites for models and steps notice what is wrong with a part that does one thing wrong."""

import threading
import time
from pathlib import Path
from typing import Any

import anyio.lowlevel
import numpy as np
import pytest

from streambatch.core.types import BoolArray, FloatArray
from streambatch.testing import ModelConformance, StepConformance
from tests.conformance.verdicts import check_noticed, failures

WEIGHTS = np.arange(1.0, 11.0)


class Sums:
    """A model; subclasses break it."""

    def score(self, x: FloatArray) -> FloatArray:
        return x @ WEIGHTS


class SumsThrice(Sums):
    def score(self, x: FloatArray) -> FloatArray:
        return np.column_stack([super().score(x)] * 3)


class OneForAll(Sums):
    def score(self, x: FloatArray) -> FloatArray:
        return super().score(x)[:1]


class Turned(Sums):
    def score(self, x: FloatArray) -> FloatArray:
        return super().score(x)[::-1]


class Squeezed(SumsThrice):
    """Forgets the batch axis for a single row."""

    def score(self, x: FloatArray) -> FloatArray:
        return super().score(x).squeeze()


class ByColumn(Sums):
    def score(self, x: FloatArray) -> FloatArray:
        scores: FloatArray = super().score(x)
        return scores if len(x) == 1 else scores.reshape(-1, 1)


class Centred(Sums):
    """A row's score depends on the batch."""

    def score(self, x: FloatArray) -> FloatArray:
        return super().score(x - x.mean(axis=0))


class Constant(Sums):
    def score(self, x: FloatArray) -> FloatArray:
        return np.ones(len(x))


class Overflows(Sums):
    def score(self, x: FloatArray) -> FloatArray:
        return super().score(x) / 0.0


class Random(Sums):
    def score(self, x: FloatArray) -> FloatArray:
        return super().score(x) + np.random.default_rng().normal(size=len(x))


class Scales(Sums):
    def score(self, x: FloatArray) -> FloatArray:
        x *= 2
        return super().score(x)


class FillsOneBuffer(Sums):
    def __init__(self) -> None:
        self.buffer = np.empty(10_000)

    def score(self, x: FloatArray) -> FloatArray:
        self.buffer[: len(x)] = super().score(x)
        return self.buffer[: len(x)]


class TakesAnyShape(Sums):
    def score(self, x: FloatArray) -> FloatArray:
        return super().score(x[:, :10])


class SpreadsNan(Sums):
    def score(self, x: FloatArray) -> FloatArray:
        return super().score(x) + 0 * float(x.sum())


class KeepsX(Sums):
    """Not for threads: between two statements another call exchanges the features."""

    def score(self, x: FloatArray) -> FloatArray:
        self.x: FloatArray = x
        time.sleep(0.001)
        return super().score(self.x)


class KeepsXAsync(Sums):
    is_async = True

    async def score(self, x: FloatArray) -> FloatArray:  # type: ignore[override]
        self.x = x
        await anyio.lowlevel.checkpoint()
        return super().score(self.x)


class Models(ModelConformance):
    def __init__(self, make: type[Sums]) -> None:
        self.make_model = make  # type: ignore[method-assign]


@pytest.mark.parametrize("model", [Sums, SumsThrice])
def test_a_right_model_passes(tmp_path: Path, model: type[Sums]) -> None:
    assert failures(Models(model), tmp_path) == {}


ONE, OWN = "there_is_one_score_per_row", "a_score_is_its_rows_own"


@pytest.mark.filterwarnings("ignore:divide by zero")
@pytest.mark.parametrize(
    ("model", "test", "saying"),
    [
        (OneForAll, ONE, "expected shape (2,) or (2, k), found (1,)"),
        (Squeezed, ONE, "expected shape (1,) or (1, k), found (3,)"),
        (ByColumn, ONE, "the shape of a record's score changes"),
        (Overflows, ONE, "are not all finite"),
        (Turned, OWN, "row 0 scores"),
        (Centred, OWN, "row 0 scores"),
        (Constant, OWN, "all rows get the same score"),
        (Random, "scores_repeat_bit_for_bit", "differently the second time"),
        (Scales, "features_are_left_alone", "score changed the features"),
        (FillsOneBuffer, "scores_are_not_overwritten_later", "a later call changed the scores"),
        (TakesAnyShape, "features_of_another_shape_are_refused", "features (8, 11) gave"),
        (SpreadsNan, "a_bad_row_costs_only_itself", "a NaN in one row changed others' scores"),
        (KeepsX, "threads_may_share_it", "scores differ when threads share the model"),
        (KeepsXAsync, "calls_may_overlap", "scores differ when calls overlap"),
    ],
)
def test_a_wrong_model_is_noticed(tmp_path: Path, model: type[Sums], test: str, saying: str) -> None:
    check_noticed(Models(model), tmp_path, test, saying)


class Halves:
    """A step; subclasses break it."""

    def __call__(self, x: FloatArray) -> Any:
        return x / 2


class Filters(Halves):
    def __call__(self, x: FloatArray) -> tuple[FloatArray, BoolArray]:
        return x / 2, x[:, 0] > 0


class Drops(Halves):
    def __call__(self, x: FloatArray) -> Any:
        return x[x[:, 0] > 0]


class Widens(Halves):
    def __call__(self, x: FloatArray) -> Any:
        return x.astype(np.float64)


class InPlace(Halves):
    def __call__(self, x: FloatArray) -> Any:
        x /= 2
        return x


class OneBuffer(Halves):
    def __init__(self) -> None:
        self.buffer = np.empty((10_000, 10))

    def __call__(self, x: FloatArray) -> Any:
        y = self.buffer[: len(x)]
        y[:] = x
        return y


class BatchNorm(Halves):
    def __call__(self, x: FloatArray) -> Any:
        return x - x.mean(axis=0)


class ByRank(Filters):
    """Keeps the upper half of each batch."""

    def __call__(self, x: FloatArray) -> tuple[FloatArray, BoolArray]:
        return x, x[:, 0] >= np.median(x[:, 0])


class MaskOfNumbers(Filters):
    def __call__(self, x: FloatArray) -> Any:
        return x, (x[:, 0] > 0).astype(int)


class ShortMask(Filters):
    def __call__(self, x: FloatArray) -> Any:
        return x, np.ones(len(x) - 1, bool)


class Jitters(Halves):
    def __call__(self, x: FloatArray) -> Any:
        return x + np.random.default_rng().normal(size=x.shape).astype(x.dtype)


class FillsWithMean(Halves):
    def __call__(self, x: FloatArray) -> Any:
        return x + 0 * x.mean()


class SharesX(Halves):
    def __call__(self, x: FloatArray) -> Any:
        self.x = x
        time.sleep(0.001)
        return self.x / 2


class Numbered:
    """A step with memory: adds the number of rows before."""

    is_stateful = True

    def initial_state(self) -> Any:
        return np.zeros(1)

    def __call__(self, state: Any, x: FloatArray) -> Any:
        return state + len(x), (x + np.arange(len(x))[:, np.newaxis] + state).astype(x.dtype)

    def dump(self, state: Any) -> bytes:
        return bytes(state.tobytes())

    def load(self, data: bytes) -> Any:
        return np.frombuffer(data).reshape(1).copy()


class ChangesState(Numbered):
    def __call__(self, state: Any, x: FloatArray) -> Any:
        _, y = super().__call__(state, x)
        state += len(x)
        return state, y


class Forgets(Numbered):
    def __call__(self, state: Any, x: FloatArray) -> Any:
        return state, super().__call__(state, x)[1]


class KeepsItself(Numbered):
    """Keeps its memory to itself instead of in the state."""

    def __init__(self) -> None:
        self.lock, self.rows = threading.Lock(), 0

    def __call__(self, state: Any, x: FloatArray) -> Any:
        with self.lock:
            _, y = super().__call__(self.rows, x)
            self.rows += len(x)
        return state, y


class Steps(StepConformance):
    def __init__(self, make: type[Any]) -> None:
        self.make_step = make  # type: ignore[method-assign]


@pytest.mark.parametrize("step", [Halves, Filters, Numbered])
def test_a_right_step_passes(tmp_path: Path, step: type[Any]) -> None:
    assert failures(Steps(step), tmp_path) == {}


BATCHED, STATE = "rows_do_not_depend_on_how_they_are_batched", "its_state_is_left_alone"


@pytest.mark.parametrize(
    ("step", "test", "saying"),
    [
        (Drops, "rows_are_kept", "rows came in and"),
        (MaskOfNumbers, "rows_are_kept", "the mask is of int64; expected bool"),
        (ShortMask, "rows_are_kept", "the mask has shape (0,); expected (1,)"),
        (Widens, "the_dtype_stays", "float32 came in and float64 went out"),
        (InPlace, "its_input_is_left_alone", "the step changed the array it was given"),
        (OneBuffer, "results_are_not_overwritten_later", "a later call changed the array"),
        (Jitters, "results_repeat_bit_for_bit", "the same rows come out differently"),
        (BatchNorm, BATCHED, "in batches of 1, rows come out differently"),
        (ByRank, BATCHED, "in batches of 1, other rows are kept"),
        (Forgets, BATCHED, "rows come out differently"),
        (FillsWithMean, "a_bad_row_costs_only_itself", "a NaN in one row changed other rows"),
        (SharesX, "threads_may_share_it", "rows came in and"),
        (ChangesState, STATE, "a call changed the state it was given"),
        (KeepsItself, STATE, "a call changed the state it was given"),
    ],
)
def test_a_wrong_step_is_noticed(tmp_path: Path, step: type[Any], test: str, saying: str) -> None:
    check_noticed(Steps(step), tmp_path, test, saying)
