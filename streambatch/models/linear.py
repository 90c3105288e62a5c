"""The linear model: scores are weighted sums of a record's features.

The sums are the BLAS library's, for speed: the last bits of a score can depend on how many records were scored with
it (seen with one column of weights in float32 and any in float64). A run is repeated exactly by scoring the batches
its journal lists.
"""

from __future__ import annotations

import hashlib
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from streambatch.core.digests import Sha256, check_digest
from streambatch.core.errors import ModelError, ShapeError
from streambatch.core.npz import arrays_of, first_place, numbers, read_archive
from streambatch.core.options import options
from streambatch.core.parts import Model, ModelOptions, Site
from streambatch.core.types import FloatArray

_NAME = "linear"


class LinearModel(Model):
    """x @ weights + bias.

    weights: (d,) for one score per record, (d, k) for k. bias: a number, or (k,).
    digest: sha256 of the model's file, or of its arrays where there is none. path: the file, for messages. Raises
    ModelError for numbers that are not finite, ShapeError for shapes that don't go together.
    """

    digest: str
    format = "linear"
    name = _NAME
    keeps_input = True

    def __init__(
        self,
        weights: npt.ArrayLike,
        bias: npt.ArrayLike = 0.0,
        *,
        digest: str | None = None,
        path: Path | None = None,
    ) -> None:
        where, self._hint = ("", "") if path is None else (f"{path}: ", f"loaded from {path}")
        self.weights = _finite(f"{where}weights", weights)
        self.bias = _finite(f"{where}bias", bias)
        if self.weights.ndim not in (1, 2) or 0 in self.weights.shape:
            raise ShapeError(f"weights of model {_NAME}", "(d,) or (d, k)", self.weights.shape, self._hint)
        width = self.weights.shape[1:]
        if self.bias.shape not in ((), (1,), width):
            # A dict keeps the order, and names the two shapes once where they are the same.
            wanted = " or ".join(map(str, {(): None, width: None}))
            raise ShapeError(f"bias of model {_NAME}", wanted, self.bias.shape, self._hint)
        if self.bias.shape == (1,):
            self.bias = self.bias.reshape(())
        self.digest = digest or hashlib.sha256(self.weights.tobytes() + self.bias.tobytes()).hexdigest()
        # Cast once: a product of two types would make a float64 copy of each batch.
        self._casts = {np.dtype(kind): (self.weights.astype(kind), self.bias.astype(kind)) for kind in ("f4", "f8")}

    def bind(self, shape: tuple[int, ...]) -> None:
        """Check that records of this shape can be scored. Raises ShapeError."""
        self._check(shape)

    def score(self, x: FloatArray, /) -> FloatArray:
        """Return one score, or k, per record, in the dtype of `x`.

        x: (n, *shape) float32 or float64; more than one axis is flattened. Returns (n,) or (n, k).
        Raises ShapeError when a record doesn't hold d numbers.
        """
        if x.ndim != 2:
            x = x.reshape(len(x), prod(x.shape[1:]))
        # Compared here since `_check` costs more, and is needed only for its message.
        if x.shape[1] != len(self.weights):
            self._check(x.shape[1:])
        weights, bias = self._casts[x.dtype]
        scores: FloatArray = x.dot(weights)
        scores += bias
        return scores

    def _check(self, shape: tuple[int, ...]) -> None:
        d = prod(shape)
        if d != len(self.weights):
            wanted = f"({d},) or ({d}, k) of weights, for records of shape {shape}"
            raise ShapeError(f"model {_NAME}", wanted, self.weights.shape, self._hint)


@options
class LinearOptions(ModelOptions):
    """A linear model: arrays `weights`, (d,) or (d, k), and `bias`, a number or (k,)."""

    path: str
    """An .npz file with the arrays `weights` and `bias`."""
    sha256: Sha256 | None = None
    """Digest that the file must have, checked before it is loaded."""

    @property
    def location(self) -> str:
        return self.path

    def build(self, site: Site) -> LinearModel:
        """Load the model. Raises ModelError, ShapeError."""
        fail = partial(ModelError, _NAME)
        archive = read_archive(site.folder / self.path, fail)
        check_digest(_NAME, archive.path, archive.digest, self.sha256)
        arrays = arrays_of(archive, ["weights", "bias"], fail)
        return LinearModel(arrays["weights"], arrays["bias"], digest=archive.digest, path=archive.path)


def _finite(name: str, value: Any) -> FloatArray:
    fail = partial(ModelError, _NAME)
    array = numbers(name, value, fail)
    wrong = ~np.isfinite(array)
    if wrong.any():
        raise fail(f"{name}{first_place(wrong)} is {array[wrong][0]}; expected a finite number")
    return array
