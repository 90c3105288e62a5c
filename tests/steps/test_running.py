"""Running statistics: the same for any cut into batches, and right."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streambatch.core.errors import ShapeError, StepError
from streambatch.core.types import FloatArray
from streambatch.steps.running import RunningStandardize, RunningState

VALUES = st.integers(-10_000, 10_000).map(lambda hundredths: hundredths / 100)
MAYBE = st.one_of(VALUES, st.sampled_from([np.nan, np.inf, -np.inf, 1e200]))


def cut(x: FloatArray, cuts: Sequence[int]) -> list[FloatArray]:
    return np.split(x, sorted(at % (len(x) + 1) for at in cuts))


def standardized(batches: Sequence[FloatArray]) -> tuple[RunningState, FloatArray]:
    step = RunningStandardize()
    state, parts = step.initial_state(), []
    for batch in batches:
        state, y = step(state, batch)
        parts.append(y)
    return state, np.concatenate(parts)


def one_by_one(x: FloatArray) -> FloatArray:
    """Standardise each record of one feature with numpy's mean and std of it and all before it."""
    y = np.empty_like(x)
    for i in range(len(x)):
        seen = x[: i + 1][np.abs(x[: i + 1]) < 1e140]
        mean, scale = (seen.mean(), seen.std()) if len(seen) else (0.0, 0.0)
        y[i] = (x[i] - mean) / (scale if scale > 1e-12 else 1.0)
    return y


@given(st.lists(VALUES, min_size=1, max_size=60), st.lists(st.integers(0, 60), max_size=5))
def test_it_equals_the_computation_record_by_record_for_any_batches(values: list[float], cuts: list[int]) -> None:
    x = np.array(values)[:, np.newaxis]
    _, y = standardized(cut(x, cuts))
    np.testing.assert_allclose(y[:, 0], one_by_one(x[:, 0]), rtol=1e-9, atol=1e-9)


@given(
    st.lists(st.tuples(MAYBE, MAYBE), min_size=1, max_size=60),
    st.lists(st.integers(0, 60), max_size=5),
    st.sampled_from([np.float32, np.float64]),
)
def test_not_a_bit_depends_on_how_records_are_batched(
    values: list[tuple[float, float]], cuts: list[int], dtype: type[np.floating]
) -> None:
    with np.errstate(over="ignore"):
        x = np.array(values).astype(dtype)
    state, y = standardized(cut(x, cuts))
    whole_state, whole = standardized([x])
    np.testing.assert_array_equal(y, whole)
    assert y.dtype == dtype
    for name in RunningState.__slots__:
        np.testing.assert_array_equal(getattr(state, name), getattr(whole_state, name))


def test_what_is_not_finite_stays_out_of_the_statistics() -> None:
    x = np.array([np.nan, 1.0, np.inf, 3.0, 1e300, np.nan, 2.0])[:, np.newaxis]
    _, y = standardized([x])
    np.testing.assert_allclose(y[[1, 3, 6], 0], [0, 1, 0], atol=1e-12)
    assert np.isnan(y[[0, 5], 0]).all()
    assert np.isinf(y[2, 0])


def test_a_constant_feature_becomes_0() -> None:
    _, y = standardized([np.full((1000, 2), 0.1), np.full((1000, 2), 0.1)])
    assert not y.any()


@pytest.mark.parametrize("first", [0.0, 1e9, -1e9])
def test_statistics_stay_exact_far_from_0_and_after_an_outlier(first: float) -> None:
    x = np.random.default_rng(1).normal(1e6, 1e-1, 20_000)
    x[0] = first
    _, y = standardized(np.array_split(x[:, np.newaxis], 7))
    shifted = x - 1e6
    wanted = (shifted[-1] - shifted.mean()) / shifted.std()
    np.testing.assert_allclose(y[-1, 0], wanted, rtol=1e-8)


def test_the_state_given_is_left_as_it_was() -> None:
    step = RunningStandardize()
    state, _ = step(step.initial_state(), np.array([[1.0], [2.0]]))
    before = {name: getattr(state, name).copy() for name in RunningState.__slots__}
    first = step(state, np.array([[5.0]]))[1]
    assert first == step(state, np.array([[5.0]]))[1]
    for name, value in before.items():
        np.testing.assert_array_equal(getattr(state, name), value)


def test_an_empty_batch_changes_nothing() -> None:
    step = RunningStandardize()
    state = step.initial_state()
    after, y = step(state, np.empty((0, 3)))
    assert after is state
    assert y.shape == (0, 3)


def test_records_of_another_shape_are_refused() -> None:
    step = RunningStandardize()
    state, _ = step(step.initial_state(), np.zeros((4, 2)))
    with pytest.raises(ShapeError) as caught:
        step(state, np.zeros((4, 3)))
    assert str(caught.value) == "preprocess step standardize: expected shape (n, 2), found (4, 3)"


@given(st.lists(st.tuples(MAYBE, MAYBE), min_size=1, max_size=20), st.lists(VALUES, min_size=1, max_size=20))
def test_a_state_that_was_dumped_and_loaded_is_the_same_to_the_bit(
    values: list[tuple[float, float]], more: list[float]
) -> None:
    step = RunningStandardize().bind((2,), "f8")
    state, _ = step(step.initial_state(), np.array(values))
    loaded = step.load(step.dump(state))
    for name in RunningState.__slots__:
        before, after = getattr(state, name), getattr(loaded, name)
        assert (after.tobytes(), after.shape, after.dtype) == (before.tobytes(), before.shape, before.dtype)
    x = np.column_stack([more, more])
    np.testing.assert_array_equal(step(loaded, x)[1], step(state, x)[1])


def test_the_state_before_the_first_record_can_be_dumped_too() -> None:
    step = RunningStandardize()
    _, y = step(step.load(step.dump(step.initial_state())), np.array([[1.0], [3.0]]))
    np.testing.assert_array_equal(y, [[0.0], [1.0]])


def test_a_state_of_another_shape_or_cut_short_is_refused() -> None:
    step = RunningStandardize()
    data = step.dump(step(step.initial_state(), np.zeros((4, 2)))[0])
    with pytest.raises(StepError, match=r"step standardize: .* of shape \(2,\); these are of \(3,\)"):
        step.bind((3,), "f8").load(data)
    with pytest.raises(StepError, match="step standardize: its stored statistics can't be read"):
        step.load(data[:-1])
    with pytest.raises(StepError, match="step standardize: its stored statistics hold 16 bytes of count"):
        step.load(data.replace(b"shape\x91\x02", b"shape\x91\x03"))
