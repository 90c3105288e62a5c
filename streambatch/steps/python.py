"""Steps written in Python: a function, an object that can be called, or a class of such."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from streambatch.core.errors import ShapeError, StepError
from streambatch.core.options import options
from streambatch.core.parts import Site, Step, StepOptions
from streambatch.core.targets import Target, load_target
from streambatch.core.text import rows_text
from streambatch.core.types import BoolArray, FloatArray
from streambatch.core.wrapping_scoring import built, check_takes_one, is_async, target_name


class PythonStep(Step):
    """A step written in Python: a function of x, an object that can be called with x, or a class of such objects.

    It returns n rows, or those and a mask (n,) of booleans: the rows to keep. The rows are cast to the dtype of
    x. Raises StepError when it can't be used.
    """

    def __init__(self, function: object, name: str | None = None) -> None:
        self.name = name or target_name(function)
        self._function = function
        fail = partial(StepError, self.name)
        call = built(function, fail)
        if not callable(call):
            raise fail(f"expected a function of x, found {call!r}")
        if is_async(call):
            raise fail("expected a function, found an async one")
        check_takes_one(call, fail)
        self._call = call

    def __reduce__(self) -> tuple[Any, ...]:
        return PythonStep, (self._function, self.name)  # of a class, the other side makes an object of its own

    def __call__(self, x: FloatArray, /) -> FloatArray | tuple[FloatArray, BoolArray]:
        """Return rows of any shape, one per row of x, or those and a mask.

        Raises ShapeError for another number of rows or a mask of another shape, StepError for what are no numbers.
        """
        result = self._call(x)
        if not isinstance(result, tuple):
            return self._rows(result, x)
        if len(result) != 2:
            raise StepError(self.name, f"expected x or (x, mask), found a tuple of {len(result)}")
        y, mask = result
        return self._rows(y, x), self._mask(mask, x)

    def _rows(self, result: object, x: FloatArray) -> FloatArray:
        y = np.asarray(result)
        if y.dtype.kind not in "fiub":
            raise StepError(self.name, f"expected an array of numbers, found one of {y.dtype}")
        if y.shape[:1] != (len(x),) or (y.ndim == 1 and x.ndim > 1):
            raise ShapeError(f"preprocess step {self.name}", rows_text(x.shape[1:]), y.shape, f"n is {len(x)}")
        # Steps and model get the dtype of the records, whatever numbers a function before them returns.
        return y.astype(x.dtype, copy=False)

    def _mask(self, result: object, x: FloatArray) -> BoolArray:
        mask = np.asarray(result)
        if mask.shape != (len(x),):
            raise ShapeError(f"mask of preprocess step {self.name}", "(n,)", mask.shape, f"n is {len(x)}")
        if mask.dtype != np.bool_:
            raise StepError(self.name, f"expected a mask of booleans, found one of {mask.dtype}")
        return mask


@options
class PythonStepOptions(StepOptions):
    """A step written in Python, installed or beside the config file."""

    path: Target
    """`package.module:name` of a function of x, an object that can be called with x, or a class of such objects."""

    def build(self, site: Site) -> PythonStep:
        """Import the step; modules are also looked for in the site's folder. Raises StepError."""
        return PythonStep(load_target(self.path, site.folder, partial(StepError, self.path)), self.path)
