"""Steps against the formulas they stand for, and what a person reads when their parameters don't fit."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streambatch.core.errors import ConfigError, ShapeError, StepError
from streambatch.core.parts import Site
from streambatch.core.types import FloatArray
from streambatch.steps.elementwise import (
    Clip,
    ClipOptions,
    ElementStep,
    Impute,
    ImputeOptions,
    MinMax,
    MinMaxOptions,
    Standardize,
    StandardizeOptions,
)
from streambatch.steps.python import PythonStep, PythonStepOptions
from streambatch.steps.running import RunningStandardize

DTYPES = st.sampled_from([np.float32, np.float64])
SHAPES = st.sampled_from([(1,), (3,), (10,), (2, 3), (4, 2, 3), (300, 300)])


@st.composite
def features(draw: st.DrawFn) -> FloatArray:
    """Records of some shape and dtype; enough of them, at times, for parameters to be repeated more than once."""
    shape, dtype = draw(SHAPES), draw(DTYPES)
    most = 4 if len(shape) > 1 else 40_000 // shape[0]
    rows = draw(st.integers(0, most))
    seed = draw(st.integers(0, 2**32 - 1))
    x = np.random.default_rng(seed).normal(size=(rows, *shape)).astype(dtype)
    if draw(st.booleans()):
        x[np.abs(x) > 1] = np.nan
    return x


def parameter(x: FloatArray, seed: int, *, is_scalar: bool) -> FloatArray:
    shape = () if is_scalar else x.shape[1:]
    return np.random.default_rng(seed).uniform(0.5, 4.0, shape)


@given(features(), st.integers(0, 1000), st.booleans())
def test_standardize_is_its_formula(x: FloatArray, seed: int, is_scalar: bool) -> None:
    mean, scale = parameter(x, seed, is_scalar=is_scalar), parameter(x, seed + 1, is_scalar=is_scalar)
    before = x.copy()
    y = Standardize(mean, scale)(x)
    np.testing.assert_array_equal(y, (x - mean.astype(x.dtype)) / scale.astype(x.dtype))
    assert y.dtype == x.dtype
    np.testing.assert_array_equal(x, before)


@given(features(), st.integers(0, 1000), st.booleans())
def test_minmax_is_its_formula_and_ends_at_0_and_1(x: FloatArray, seed: int, is_scalar: bool) -> None:
    low = parameter(x, seed, is_scalar=is_scalar)
    high = low + parameter(x, seed + 1, is_scalar=is_scalar)
    step = MinMax(low, high)
    np.testing.assert_allclose(step(x), (x - low) / (high - low), rtol=1e-4, atol=1e-5)
    ends = np.stack([np.broadcast_to(low, x.shape[1:]), np.broadcast_to(high, x.shape[1:])])
    np.testing.assert_allclose(step(ends)[0], 0, atol=1e-12)
    np.testing.assert_allclose(step(ends)[1], 1, atol=1e-12)


@given(features(), st.integers(0, 1000), st.booleans())
def test_clip_is_numpys(x: FloatArray, seed: int, is_scalar: bool) -> None:
    high = parameter(x, seed, is_scalar=is_scalar).astype(x.dtype)
    np.testing.assert_array_equal(Clip(-high, high)(x), np.clip(x, -high, high))
    np.testing.assert_array_equal(Clip(low=-high)(x), np.maximum(x, -high))
    np.testing.assert_array_equal(Clip(high=high)(x), np.minimum(x, high))


@given(features(), st.integers(0, 1000), st.booleans())
def test_impute_fills_what_is_nan_and_only_that(x: FloatArray, seed: int, is_scalar: bool) -> None:
    value = parameter(x, seed, is_scalar=is_scalar)
    before = x.copy()
    np.testing.assert_array_equal(Impute(value)(x), np.where(np.isnan(x), value.astype(x.dtype), x))
    np.testing.assert_array_equal(x, before)


@given(features())
def test_a_bound_step_does_what_the_step_does(x: FloatArray) -> None:
    step = Standardize(1.5, 2.5)
    np.testing.assert_array_equal(step.bind(x.shape[1:], x.dtype)(x), step(x))


def test_a_step_of_one_record_and_of_none() -> None:
    step = Standardize([1.0, 2.0], [2.0, 4.0])
    np.testing.assert_array_equal(step(np.array([[3.0, 2.0]])), [[1.0, 0.0]])
    assert step(np.empty((0, 2), np.float32)).shape == (0, 2)


def test_a_step_takes_arrays_it_may_not_write_to_and_ones_that_are_not_contiguous() -> None:
    x = np.arange(40.0).reshape(10, 4)
    x.flags.writeable = False
    np.testing.assert_array_equal(Clip(3, 5)(x[::2, ::2]), np.clip(x[::2, ::2], 3, 5))


def test_threads_share_a_step() -> None:
    step = Standardize(np.arange(10), np.arange(1, 11))
    xs = [np.full((512, 10), i, np.float32 if i % 2 else np.float64) for i in range(64)]
    wanted = [(x - np.arange(10).astype(x.dtype)) / np.arange(1, 11).astype(x.dtype) for x in xs]
    with ThreadPoolExecutor(8) as pool:
        for found, right in zip(pool.map(step, xs), wanted, strict=True):
            np.testing.assert_array_equal(found, right)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Standardize([0, 0], [1, 0]), "preprocess step standardize: scale[1] is 0; expected another number"),
        (lambda: Standardize(0, 0), "preprocess step standardize: scale is 0; expected another number"),
        (lambda: Standardize(np.nan, 1), "preprocess step standardize: mean is nan; expected a finite number"),
        (lambda: Standardize([0, 0], [1, np.inf]), "standardize: scale[1] is inf; expected a finite number"),
        (lambda: Standardize([[1], [1, 2]], 1), "mean: expected numbers, found lists of different lengths"),
        (lambda: Standardize("0.5", 1), "standardize: mean: expected numbers, found an array of <U3"),
        (lambda: Standardize(0, 1, name="z").bind((1,), "f4")(np.zeros((2, 3))), "step z: expected shape (n, 1)"),
        (lambda: MinMax([0, 5], [1, 5]), "preprocess step minmax: data_max[1] = 5 is not above data_min = 5"),
        (lambda: MinMax([0, 5], [1, 2, 3]), "data_max of preprocess step minmax: expected shape (2,) like data_min"),
        (lambda: Clip(), "preprocess step clip: expected low or high or both"),
        (lambda: Clip(2, 1), "preprocess step clip: low = 2 is above high = 1"),
        (lambda: Clip(np.nan), "preprocess step clip: low is nan; expected a number"),
        (lambda: Impute([1, np.inf]), "preprocess step impute: value[1] is inf; expected a finite number"),
    ],
)  # fmt: skip
def test_impossible_parameters_are_refused(build: Callable[[], object], message: str) -> None:
    with pytest.raises((StepError, ShapeError)) as caught:
        build()
    assert message in str(caught.value)


def test_binding_names_the_parameter_that_does_not_fit_the_records() -> None:
    with pytest.raises(ShapeError) as caught:
        Standardize(0, np.ones(9)).bind((10,), np.float32)
    assert str(caught.value) == "scale of preprocess step standardize: expected shape (10,), one record's, found (9,)"
    with pytest.raises(ShapeError):
        Clip(np.zeros((10, 1)), 1).bind((10,), np.float32)


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (Standardize([0, 1e300], 1), "mean[1] = 1e+300 is inf as float32"),
        (Standardize(0, [1, 1e-60]), "scale[1] = 1e-60 is 0.0 as float32"),
        (MinMax(0, 1e-60), "scale = 1e-60 is 0.0 as float32"),
    ],
)
def test_binding_refuses_what_the_dtype_can_not_hold(step: ElementStep, message: str) -> None:
    step.bind((2,), np.float64)
    with pytest.raises(StepError) as caught:
        step.bind((2,), np.float32)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "build",
    [
        lambda: StandardizeOptions(),
        lambda: StandardizeOptions(mean=0),
        lambda: StandardizeOptions(scale=[1.0]),
        lambda: StandardizeOptions(mean=0, scale=1, path="a.npz"),
        lambda: StandardizeOptions(path="a.npz", fit="running"),
        lambda: MinMaxOptions(data_max=1),
        lambda: MinMaxOptions(data_min=0, data_max=1, path="a.npz"),
        lambda: ClipOptions(),
        lambda: PythonStepOptions(path="module"),
        lambda: PythonStepOptions(path="a/b.py:f"),
    ],
)
def test_impossible_combinations_of_options_are_refused(build: Callable[[], object]) -> None:
    with pytest.raises(ConfigError):
        build()


def test_a_wrong_combination_says_what_was_given_and_what_may_be() -> None:
    with pytest.raises(ConfigError) as caught:
        StandardizeOptions(mean=0, scale=1, path="a.npz")
    assert str(caught.value).endswith("mean: found mean, path; allowed: mean and scale or path or fit")
    with pytest.raises(ConfigError) as caught:
        StandardizeOptions(mean=0)
    assert str(caught.value).endswith("scale: found nothing; allowed: mean and scale together")


def test_options_build_their_steps(tmp_path: Path) -> None:
    x = np.array([[1.0, np.nan, 5.0]])
    standardize = StandardizeOptions(mean=[1.0], scale=2).build(Site(folder=tmp_path))
    assert isinstance(standardize, Standardize)
    np.testing.assert_array_equal(standardize(x), [[0, np.nan, 2]])
    np.testing.assert_array_equal(MinMaxOptions(data_min=1, data_max=5).build(Site())(x), [[0, np.nan, 1]])
    np.testing.assert_array_equal(ClipOptions(high=2).build(Site(folder=tmp_path))(x), [[1, np.nan, 2]])
    np.testing.assert_array_equal(ImputeOptions(value=[0, 7, 0]).build(Site(folder=tmp_path))(x), [[1, 7, 5]])
    assert isinstance(StandardizeOptions(fit="running").build(Site(folder=tmp_path)), RunningStandardize)


def test_statistics_come_from_a_file_beside_the_config(tmp_path: Path) -> None:
    np.savez(tmp_path / "stats.npz", mean=[1, 2], scale=[2.0, 4.0], data_min=0, data_max=np.float32(2))
    step = StandardizeOptions(path="stats.npz").build(Site(folder=tmp_path))
    assert isinstance(step, Standardize)
    np.testing.assert_array_equal(step(np.array([[3.0, 2.0]])), [[1, 0]])
    np.testing.assert_array_equal(
        MinMaxOptions(path="stats.npz").build(Site(folder=tmp_path))(np.array([[1.0]])), [[0.5]]
    )


def test_a_file_of_statistics_that_is_missing_or_short_says_so(tmp_path: Path) -> None:
    with pytest.raises(StepError, match=r"preprocess step standardize: .*stats.npz: No such file or directory"):
        StandardizeOptions(path="stats.npz").build(Site(folder=tmp_path))
    np.savez(tmp_path / "stats.npz", mean=[1, 2])
    with pytest.raises(StepError, match=r"stats.npz: no array `scale`; it holds `mean`"):
        StandardizeOptions(path="stats.npz").build(Site(folder=tmp_path))


def wide(x: FloatArray) -> FloatArray:
    return np.hstack([x, x])


@pytest.mark.parametrize(
    ("function", "wanted"),
    [
        (lambda x: x + 1, [[1.0, 2.0], [3.0, 4.0]]),
        (lambda x: (x * 2).tolist(), [[0.0, 2.0], [4.0, 6.0]]),
        (lambda x: x > 1, [[0.0, 0.0], [1.0, 1.0]]),
        (wide, [[0.0, 1.0, 0.0, 1.0], [2.0, 3.0, 2.0, 3.0]]),
        (lambda x: x[:, :1], [[0.0], [2.0]]),
    ],
)
def test_a_python_step_returns_rows_in_the_dtype_of_the_records(function: Any, wanted: list[list[float]]) -> None:
    y = PythonStep(function)(np.arange(4, dtype=np.float32).reshape(2, 2))
    assert isinstance(y, np.ndarray)
    np.testing.assert_array_equal(y, wanted)
    assert y.dtype == np.float32


def test_a_python_step_may_return_the_rows_to_keep() -> None:
    y, mask = PythonStep(lambda x: (x, x[:, 0] > 0))(np.array([[0.0], [1.0]]))
    np.testing.assert_array_equal(y, [[0.0], [1.0]])
    np.testing.assert_array_equal(mask, [False, True])


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: x[:, 0], "preprocess step mine: expected shape (n, 10), found (512,); n is 512"),
        (lambda x: x[0], "preprocess step mine: expected shape (n, 10), found (10,); n is 512"),
        (lambda x: x[1:], "preprocess step mine: expected shape (n, 10), found (511, 10); n is 512"),
        (lambda x: x.sum(), "preprocess step mine: expected shape (n, 10), found (); n is 512"),
        (lambda x: None, "preprocess step mine: expected an array of numbers, found one of object"),
        (lambda x: x.astype(str), "preprocess step mine: expected an array of numbers, found one of <U"),
        (lambda x: (x, x), "mask of preprocess step mine: expected shape (n,), found (512, 10); n is 512"),
        (lambda x: (x, x[1:, 0] > 0), "mask of preprocess step mine: expected shape (n,), found (511,); n is 512"),
        (lambda x: (x, np.arange(512)), "preprocess step mine: expected a mask of booleans, found one of int64"),
        (lambda x: (x, None, None), "preprocess step mine: expected x or (x, mask), found a tuple of 3"),
    ],
)
def test_a_python_step_that_returns_something_else_is_told_so(function: Any, message: str) -> None:
    with pytest.raises((ShapeError, StepError)) as caught:
        PythonStep(function, "mine")(np.zeros((512, 10), np.float32))
    assert message in str(caught.value)


class Doubling:
    def __call__(self, x: FloatArray) -> FloatArray:
        return x * 2


async def later(x: FloatArray) -> FloatArray:
    return x


@pytest.mark.parametrize("target", [Doubling, Doubling()])
def test_a_python_step_may_be_an_object_or_its_class(target: object) -> None:
    assert np.asarray(PythonStep(target)(np.ones((1, 1)))).tolist() == [[2.0]]


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (3, "expected a function of x, found 3"),
        (later, "expected a function, found an async one"),
        (lambda x, y: x, "expected a function of one array x, found one of (x, y)"),
    ],
)
def test_what_can_not_be_a_step_is_refused(target: object, message: str) -> None:
    with pytest.raises(StepError) as caught:
        PythonStep(target, "mine")
    assert str(caught.value) == f"preprocess step mine: {message}"


def test_a_python_step_is_found_beside_the_config(tmp_path: Path) -> None:
    (tmp_path / "halving_for_steps.py").write_text("def halve(x):\n    return x / 2\n")
    step = PythonStepOptions(path="halving_for_steps:halve").build(Site(folder=tmp_path))
    assert np.asarray(step(np.ones((1, 1)))).tolist() == [[0.5]]
    assert step.name == "halving_for_steps:halve"
    with pytest.raises(StepError, match=r"preprocess step halving_for_steps:twice: no twice in .*halving_for_steps.py"):
        PythonStepOptions(path="halving_for_steps:twice").build(Site(folder=tmp_path))
