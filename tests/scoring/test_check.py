"""What a model may return, and what it is told otherwise."""

import array
from typing import Any

import numpy as np
import pytest

from streambatch.core.errors import ModelError, ShapeError
from streambatch.scoring.check import checked_scores


@pytest.mark.parametrize(
    ("scores", "dtype"),
    [
        (np.ones(3, np.float32), np.float32),
        (np.ones((3, 2), np.float64), np.float64),
        (np.ones(3, np.float16), np.float32),
        (np.ones(3, np.int8), np.float64),
        (np.ones((3, 1), bool), np.float64),
        (np.ones(3, np.longdouble), np.float64),
        ([1, 2, 3], np.float64),
        ([[1.5], [2.5], [3.5]], np.float64),
        (array.array("f", [1, 2, 3]), np.float32),
    ],
)
def test_numbers_become_floats(scores: Any, dtype: type[np.floating]) -> None:
    checked = checked_scores("m", scores, 3)
    assert checked.dtype == dtype
    np.testing.assert_array_equal(checked, np.asarray(scores))


def test_scores_that_are_right_are_not_copied_and_may_be_non_finite() -> None:
    scores = np.array([np.nan, np.inf, 1.0])
    assert checked_scores("m", scores, 3) is scores


@pytest.mark.parametrize("shape", [(), (511,), (513,), (511, 2), (512, 0), (512, 1, 1), (1, 512), (0,)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError) as caught:
        checked_scores("mymodule:score", np.zeros(shape), 512)
    assert str(caught.value) == f"model mymodule:score: expected shape (512,) or (512, k), found {shape}"


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        (["a", "b"], "expected scores that are numbers, found an array of <U1"),
        ([None, 1], "expected scores that are numbers, found an array of object"),
        ([{}, {}], "expected scores that are numbers, found an array of object"),
        (np.array([1j, 2j]), "expected scores that are numbers, found an array of complex128"),
        ([[1, 2], [3]], "expected an array of numbers, found list"),
    ],
)
def test_what_are_no_numbers_is_refused(scores: object, message: str) -> None:
    with pytest.raises(ModelError) as caught:
        checked_scores("m", scores, 2)
    assert message in str(caught.value)


@pytest.mark.parametrize("scores", [None, {"score": 1.0}, "score", object()])
def test_what_is_no_array_at_all_is_refused(scores: object) -> None:
    with pytest.raises(ShapeError, match=r"model m: expected shape \(2,\) or \(2, k\), found \(\)"):
        checked_scores("m", scores, 2)
