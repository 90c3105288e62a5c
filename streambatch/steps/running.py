"""Standardising with the statistics of the stream so far: a step with memory, as a function (state, x) -> (state, y).

Sums run in the order of records and around a shift that never changes, so that the result is the same, bit for bit,
however records were batched.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import msgspec
import numpy as np
import numpy.typing as npt

from streambatch.core.checkpoints import resolved_early
from streambatch.core.errors import ShapeError, StepError
from streambatch.core.parts import StatefulStep
from streambatch.core.types import BoolArray, FloatArray

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


@resolved_early
class _Stored(msgspec.Struct, frozen=True, kw_only=True):
    """A state as it is dumped: little-endian float64, so that it is the same to the bit on any machine."""

    version: int
    shape: tuple[int, ...]
    count: bytes
    shift: bytes
    total: bytes
    squares: bytes


_VERSION = 1
_STORED = np.dtype("<f8")


class RunningStandardize(StatefulStep):
    """(x - mean) / scale, each record with mean and standard deviation of all records up to and with itself.

    Standard deviations are of the population (divided by n); while one is 0, the scale is 1.
    """

    keeps_input = True
    keeps_shape = True

    def __init__(self, *, name: str = "standardize", shape: tuple[int, ...] | None = None) -> None:
        self.name, self._shape = name, shape

    def bind(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> RunningStandardize:
        """Return the step for records of one shape, which then refuses the state of others."""
        return RunningStandardize(name=self.name, shape=shape)

    def initial_state(self) -> RunningState:
        """Return the state before the first record."""
        zero = np.zeros(())
        return RunningState(count=zero, shift=zero, total=zero, squares=zero)

    def __call__(self, state: RunningState, x: FloatArray, /) -> tuple[RunningState, FloatArray]:
        """Return the state after `x` and `x` standardised, in the dtype of `x`.

        x: (n, *shape); values that are not finite stay so and don't count. Raises ShapeError when the shape changed.
        """
        # The initial state has the shape () and fits any record.
        if state.count.shape not in ((), x.shape[1:]):
            wanted = ("n", *map(str, state.count.shape))
            raise ShapeError(f"preprocess step {self.name}", f"({', '.join(wanted)})", x.shape)
        # Without a row there is no last row of the sums, which is the state after.
        if len(x) == 0:
            return state, x
        # Values that are not finite stay so, and pass through the arithmetic without a warning.
        with np.errstate(over="ignore", invalid="ignore"):
            return _standardized(state, x)

    def dump(self, state: RunningState, /) -> bytes:
        """Return the state as bytes that hold all of it, exactly."""
        arrays = {name: getattr(state, name).astype(_STORED).tobytes() for name in RunningState.__slots__}
        return msgspec.msgpack.encode(_Stored(version=_VERSION, shape=state.count.shape, **arrays))

    def load(self, data: bytes, /) -> RunningState:
        """Return the state that was dumped. Raises StepError for one of records of another shape."""
        try:
            stored = msgspec.msgpack.decode(data, type=_Stored)
        except msgspec.MsgspecError as error:
            raise StepError(self.name, f"its stored statistics can't be read: {error}") from error
        if stored.version != _VERSION:
            problem = f"its statistics were stored in version {stored.version}; this one reads {_VERSION}"
            raise StepError(self.name, problem)
        if self._shape is not None and stored.shape not in ((), self._shape):
            problem = f"its stored statistics are of records of shape {stored.shape}; these are of {self._shape}"
            raise StepError(self.name, problem)
        return RunningState(**{name: self._array(name, stored) for name in RunningState.__slots__})

    def _array(self, name: str, stored: _Stored) -> FloatArray:
        data: bytes = getattr(stored, name)
        if len(data) != _STORED.itemsize * prod(stored.shape):
            raise StepError(self.name, f"its stored statistics hold {len(data)} bytes of {name} for {stored.shape}")
        return np.frombuffer(data, _STORED).astype(np.float64).reshape(stored.shape)


def _standardized(state: RunningState, x: FloatArray) -> tuple[RunningState, FloatArray]:
    wide = x.astype(np.float64)
    is_known = np.abs(wide) < _LARGEST
    shift = _shift(state, wide, is_known)
    # In place: `astype` made a copy, so that x stays as it is.
    wide -= shift
    known = np.where(is_known, wide, 0.0)
    count = _running(state.count, is_known.astype(np.float64))
    squares = _running(state.squares, np.square(known))
    total = _running(state.total, known)
    # Copies, or the state would keep the sums of the whole batch in memory.
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
    # One by one, unlike np.sum, which adds in pairs: the result doesn't depend on where batches were cut.
    return np.cumsum(values, axis=0, out=values)
