"""Standardising with the statistics of the stream so far: a step with memory, as a function (state, x) -> (state, y).

Sums run in the order of records and around a shift that never changes, so that the result is the same, bit for bit,
however records were batched.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from streambatch.errors import ShapeError
from streambatch.records import BoolArray, FloatArray

_LARGEST = 1e140
"""Values from here on stay out of the statistics, like those that are not finite: their squares would overflow, and one
of them would spoil every record after it."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RunningState:
    """Per feature, float64: how many values were seen, the first of them, and the sums of what the values differ from
    it by and of the squares of that.

    Since the shift is one of the values, the variance can't be smaller than the squared distance of the mean from it
    over their number: the difference of sums loses a relative n * 2**-53 at most.
    """

    count: FloatArray
    shift: FloatArray
    total: FloatArray
    squares: FloatArray


class RunningStandardize:
    """(x - mean) / scale, each record with mean and standard deviation of all records up to and with itself.

    Standard deviations are of the population (divided by n); while one is 0, the scale is 1.
    """

    is_stateful = True

    def __init__(self, *, name: str = "standardize") -> None:
        self.name = name

    def initial_state(self) -> RunningState:
        """Return the state before the first record."""
        zero = np.zeros(())
        return RunningState(count=zero, shift=zero, total=zero, squares=zero)

    def __call__(self, state: RunningState, x: FloatArray) -> tuple[RunningState, FloatArray]:
        """Return the state after `x` and `x` standardised, in the dtype of `x`.

        x: (n, *shape); values that are not finite stay so and don't count. Raises ShapeError when the shape changed.
        """
        if state.count.shape not in ((), x.shape[1:]):
            wanted = ("n", *map(str, state.count.shape))
            raise ShapeError(f"preprocess step {self.name}", f"({', '.join(wanted)})", x.shape)
        if len(x) == 0:
            return state, x
        with np.errstate(over="ignore", invalid="ignore"):
            return _standardized(state, x)


def _standardized(state: RunningState, x: FloatArray) -> tuple[RunningState, FloatArray]:
    wide = x.astype(np.float64)
    is_known = np.abs(wide) < _LARGEST
    shift = _shift(state, wide, is_known)
    wide -= shift
    known = np.where(is_known, wide, 0.0)
    count = _running(state.count, is_known.astype(np.float64))
    squares = _running(state.squares, np.square(known))
    total = _running(state.total, known)
    after = RunningState(count=count[-1].copy(), shift=shift, total=total[-1].copy(), squares=squares[-1].copy())
    divisor = np.maximum(count, 1.0)
    mean = total / divisor
    variance = (squares - total * mean) / divisor
    scale = np.sqrt(np.maximum(variance, 0.0))
    scale[scale == 0.0] = 1.0
    return after, ((wide - mean) / scale).astype(x.dtype)


def _shift(state: RunningState, wide: FloatArray, is_known: BoolArray) -> FloatArray:
    """Return the first value of each feature ever seen; 0 for one that was not seen yet."""
    if state.count.all():
        return state.shift
    row = np.argmax(is_known, axis=0)[np.newaxis]
    first = np.where(is_known.any(axis=0), np.take_along_axis(wide, row, axis=0)[0], 0.0)
    return np.where(state.count == 0, first, state.shift)


def _running(before: FloatArray, values: FloatArray) -> FloatArray:
    values[0] += before
    return np.cumsum(values, axis=0, out=values)
