"""Preprocess steps: pure functions from arrays of features (n, *shape) to arrays of the same dtype.

A step never changes the array it is given. Faults of its parameters are found when it is built or bound to
the shape and dtype of the records, not while records flow.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from math import prod
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from streambatch.core.errors import OptionError, ShapeError, StepError
from streambatch.core.npz import arrays_of, first_place, numbers, read_archive
from streambatch.core.options import options
from streambatch.core.parts import Site, Step, StepOptions
from streambatch.core.text import rows_text
from streambatch.core.types import FloatArray
from streambatch.steps.running import RunningStandardize

Shape = tuple[int, ...]
Kernel = Callable[..., object]
"""Writes into its second array what it makes of its first and of parameters of the same shape."""

_TILE_BYTES = 64 << 10
"""Parameters are repeated for so many bytes of records: numpy is several times faster on arrays of equal shape than
on ones it has to broadcast over short rows."""


class ElementStep(Step):
    """A step that treats each feature by itself, with parameters that broadcast over the shape of a record."""

    keeps_input = True
    keeps_shape = True

    def __init__(self, name: str, kernel: Kernel, **parameters: FloatArray) -> None:
        self.name = name
        self._kernel, self._parameters = kernel, parameters
        self._bound: dict[tuple[Shape, np.dtype[Any]], BoundStep] = {}

    def bind(self, shape: Shape, dtype: npt.DTypeLike) -> BoundStep:
        """Return the step for records of one shape and dtype.

        Raises ShapeError when a parameter doesn't broadcast to `shape`, StepError when one has no place in `dtype`.
        """
        for name, parameter in self._parameters.items():
            if not _broadcasts(parameter.shape, shape):
                raise ShapeError(f"{name} of preprocess step {self.name}", f"{shape}, one record's", parameter.shape)
        values = [self._cast(name, parameter, np.dtype(dtype)) for name, parameter in self._parameters.items()]
        return BoundStep(self.name, self._kernel, shape, values)

    def __call__(self, x: FloatArray, /) -> FloatArray:
        """Return a new array; x: (n, *shape). Raises as `bind` does, which is faster where the shape is known."""
        key = (x.shape[1:], x.dtype)
        bound = self._bound.get(key)
        if bound is None:
            bound = self._bound[key] = self.bind(*key)
        return bound(x)

    def _cast(self, name: str, parameter: FloatArray, dtype: np.dtype[Any]) -> FloatArray:
        with np.errstate(over="ignore"):
            value = parameter.astype(dtype)
        lost = (np.isinf(value) & np.isfinite(parameter)) | ((value == 0) & (parameter != 0) & (name == "scale"))
        # Infinite in the smaller type, or a scale that became 0: every record would come out as infinite or NaN.
        if lost.any():
            raise StepError(
                self.name, f"{name}{first_place(lost)} = {parameter[lost][0]:g} is {value[lost][0]} as {dtype}"
            )
        return value


class BoundStep(Step):
    """An `ElementStep` for records of one shape and dtype."""

    keeps_input = True
    keeps_shape = True

    def __init__(self, name: str, kernel: Kernel, shape: Shape, parameters: Sequence[FloatArray]) -> None:
        self.name = name
        self._kernel, self._shape = kernel, shape
        record_bytes = prod(shape) * parameters[0].itemsize
        self._rows = max(1, _TILE_BYTES // max(1, record_bytes))
        self._tiles = [np.ascontiguousarray(np.broadcast_to(value, (self._rows, *shape))) for value in parameters]

    def bind(self, shape: Shape, dtype: npt.DTypeLike) -> BoundStep:
        """Return itself: it is bound already. Raises ShapeError for another shape."""
        if shape != self._shape:
            raise ShapeError(f"preprocess step {self.name}", rows_text(self._shape), shape)
        return self

    def __call__(self, x: FloatArray, /) -> FloatArray:
        """Return a new array; x: (n, *shape). Raises ShapeError for records of another shape."""
        if x.shape[1:] != self._shape:
            raise ShapeError(f"preprocess step {self.name}", rows_text(self._shape), x.shape)
        y = np.empty_like(x)
        rows = self._rows
        for start in range(0, len(x), rows):
            part = x[start : start + rows]
            count = len(part)
            self._kernel(part, y[start : start + rows], *[tile[:count] for tile in self._tiles])
        return y


class Standardize(ElementStep):
    """(x - mean) / scale.

    mean, scale: numbers that broadcast over a record's shape, finite; scale not 0. Raises StepError.
    """

    def __init__(self, mean: npt.ArrayLike, scale: npt.ArrayLike, *, name: str = "standardize") -> None:
        fail = partial(StepError, name)
        shift, divisor = _parameter("mean", mean, fail), _parameter("scale", scale, fail)
        if not divisor.all():
            raise fail(
                f"scale{first_place(divisor == 0)} is 0; expected another number, such as 1 for a constant feature"
            )
        super().__init__(name, _shift_and_divide, mean=shift, scale=divisor)


class MinMax(ElementStep):
    """(x - data_min) / (data_max - data_min): what lies between the two comes to lie in [0, 1].

    data_min, data_max: as scikit-learn's MinMaxScaler names them; they broadcast over a record's shape, finite,
    data_max above data_min. Raises StepError, ShapeError.
    """

    def __init__(self, data_min: npt.ArrayLike, data_max: npt.ArrayLike, *, name: str = "minmax") -> None:
        fail = partial(StepError, name)
        low, high = _parameter("data_min", data_min, fail), _parameter("data_max", data_max, fail)
        # To one shape, so that a message can name the place of a pair that doesn't fit.
        low, high = _together(name, "data_min", low, "data_max", high)
        if (high <= low).any():
            place = high <= low
            raise fail(f"data_max{first_place(place)} = {high[place][0]:g} is not above data_min = {low[place][0]:g}")
        super().__init__(name, _shift_and_divide, data_min=low, scale=high - low)


class Clip(ElementStep):
    """x, but no less than `low` and no more than `high`; either may be left out. NaN stays.

    low, high: numbers that broadcast over a record's shape, low not above high. Raises StepError, ShapeError.
    """

    def __init__(
        self, low: npt.ArrayLike | None = None, high: npt.ArrayLike | None = None, *, name: str = "clip"
    ) -> None:
        fail = partial(StepError, name)
        if low is None and high is None:
            raise fail("expected low or high or both")
        least = _bound("low", -np.inf if low is None else low, fail)
        most = _bound("high", np.inf if high is None else high, fail)
        least, most = _together(name, "low", least, "high", most)
        if (least > most).any():
            place = least > most
            raise fail(f"low{first_place(place)} = {least[place][0]:g} is above high = {most[place][0]:g}")
        super().__init__(name, _clip, low=least, high=most)


class Impute(ElementStep):
    """x, with `value` wherever it is NaN.

    value: numbers that broadcast over a record's shape, finite. Raises StepError.
    """

    def __init__(self, value: npt.ArrayLike, *, name: str = "impute") -> None:
        super().__init__(name, _impute, value=_parameter("value", value, partial(StepError, name)))


Numbers = float | list[float]


@options
class StandardizeOptions(StepOptions):
    """(x - mean) / scale, from `mean` and `scale`, from a file, or from the records so far."""

    mean: Numbers | None = None
    """Subtracted: one number, or one per feature."""
    scale: Numbers | None = None
    """Divided by: one number, or one per feature; not 0."""
    path: str | None = None
    """Instead: an .npz file with the arrays `mean` and `scale`."""
    fit: Literal["running"] | None = None
    """Instead: `running`, mean and standard deviation of all records up to and with each."""

    def __post_init__(self) -> None:
        _check_one_way("mean", self.mean, "scale", self.scale, path=self.path, fit=self.fit)

    def build(self, site: Site) -> Standardize | RunningStandardize:
        """Return the step. Raises StepError."""
        if self.mean is not None and self.scale is not None:
            return Standardize(self.mean, self.scale)
        if self.path is not None:
            return Standardize(*_loaded("standardize", site.folder / self.path, ["mean", "scale"]))
        return RunningStandardize()


@options
class MinMaxOptions(StepOptions):
    """(x - data_min) / (data_max - data_min), from numbers or a file."""

    data_min: Numbers | None = None
    """Becomes 0: one number, or one per feature."""
    data_max: Numbers | None = None
    """Becomes 1: one number, or one per feature."""
    path: str | None = None
    """Instead: an .npz file with the arrays `data_min` and `data_max`."""

    def __post_init__(self) -> None:
        _check_one_way("data_min", self.data_min, "data_max", self.data_max, path=self.path)

    def build(self, site: Site) -> MinMax:
        """Return the step. Raises StepError."""
        if self.data_min is not None and self.data_max is not None:
            return MinMax(self.data_min, self.data_max)
        return MinMax(*_loaded("minmax", site.folder / str(self.path), ["data_min", "data_max"]))


@options
class ClipOptions(StepOptions):
    """x, but no less than `low` and no more than `high`."""

    low: Numbers | None = None
    """Least value: one number, or one per feature."""
    high: Numbers | None = None
    """Largest value: one number, or one per feature."""

    def __post_init__(self) -> None:
        if self.low is None and self.high is None:
            raise OptionError("low", "nothing", "low or high or both")

    def build(self, site: Site) -> Clip:
        """Return the step. Raises StepError."""
        return Clip(self.low, self.high)


@options
class ImputeOptions(StepOptions):
    """x, with `value` wherever it is NaN; needs `missing = "nan"` in `[record]`."""

    value: Numbers
    """What to put there: one number, or one per feature."""

    def build(self, site: Site) -> Impute:
        """Return the step. Raises StepError."""
        return Impute(self.value)


def _shift_and_divide(x: FloatArray, y: FloatArray, shift: FloatArray, divisor: FloatArray) -> None:
    np.subtract(x, shift, out=y)
    np.divide(y, divisor, out=y)


def _clip(x: FloatArray, y: FloatArray, low: FloatArray, high: FloatArray) -> None:
    # These two pass NaN on; np.fmax and np.fmin would put the bound in its place.
    np.maximum(x, low, out=y)
    np.minimum(y, high, out=y)


def _impute(x: FloatArray, y: FloatArray, value: FloatArray) -> None:
    np.copyto(y, x)
    np.copyto(y, value, where=np.isnan(x))


def _parameter(name: str, value: object, fail: Callable[[str], StepError]) -> FloatArray:
    array = numbers(name, value, fail)
    wrong = ~np.isfinite(array)
    if wrong.any():
        raise fail(f"{name}{first_place(wrong)} is {array[wrong][0]}; expected a finite number")
    return array


def _bound(name: str, value: object, fail: Callable[[str], StepError]) -> FloatArray:
    array = numbers(name, value, fail)
    wrong = np.isnan(array)
    if wrong.any():
        raise fail(f"{name}{first_place(wrong)} is nan; expected a number")
    return array


def _together(step: str, low_name: str, low: FloatArray, high_name: str, high: FloatArray) -> list[FloatArray]:
    """Return two parameters, broadcast to one shape."""
    try:
        return list(np.broadcast_arrays(low, high))
    except ValueError as error:
        raise ShapeError(
            f"{high_name} of preprocess step {step}", f"{low.shape} like {low_name}", high.shape
        ) from error


def _check_one_way(first: str, low: object, second: str, high: object, **others: object) -> None:
    """Refuse anything but both of two options together or one of the others alone."""
    given = [first] if low is not None or high is not None else []
    given += [name for name, value in others.items() if value is not None]
    if len(given) != 1:
        raise OptionError(first, ", ".join(given) or "nothing", " or ".join([f"{first} and {second}", *others]))
    if (low is None) != (high is None):
        raise OptionError(second if high is None else first, "nothing", f"{first} and {second} together")


def _loaded(step: str, path: Path, names: Sequence[str]) -> list[FloatArray]:
    fail = partial(StepError, step)
    arrays = arrays_of(read_archive(path, fail), names, fail)
    return [arrays[name] for name in names]


def _broadcasts(shape: Shape, to: Shape) -> bool:
    try:
        return np.broadcast_shapes(shape, to) == to
    except ValueError:
        return False
