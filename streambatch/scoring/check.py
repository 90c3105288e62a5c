"""The check of every array of scores that a model returns: its shape, and that it holds numbers."""

from __future__ import annotations

from typing import Any

import numpy as np

from streambatch.core.errors import ModelError, ShapeError
from streambatch.core.types import FloatArray

_NUMBERS = "fiub"
_FLOATS = (np.dtype(np.float32), np.dtype(np.float64))


def checked_scores(model: str, scores: object, n: int) -> FloatArray:
    """Return a model's scores as float32 or float64 of shape (n,) or (n, k), k at least 1.

    Other numbers become floats: float16 as float32, integers and booleans as float64. Numbers that are not finite pass.
    Raises ShapeError for other shapes, ModelError for what are no numbers.
    """
    # The exact type: subclasses, such as masked arrays, become plain arrays first.
    array = scores if type(scores) is np.ndarray else _as_array(model, scores)
    shape = array.shape
    if not 1 <= len(shape) <= 2 or shape[0] != n or (len(shape) == 2 and shape[1] == 0):
        raise ShapeError(f"model {model}", f"({n},) or ({n}, k)", shape)
    return array if array.dtype in _FLOATS else _as_floats(model, array)


def _as_array(model: str, scores: object) -> np.ndarray[Any, Any]:
    try:
        return np.asarray(scores)
    except Exception as error:  # an array-like of another package may raise anything
        problem = f"expected an array of numbers, found {type(scores).__name__}: {error}"
        raise ModelError(model, problem) from error


def _as_floats(model: str, array: np.ndarray[Any, Any]) -> FloatArray:
    if array.dtype.kind not in _NUMBERS:
        raise ModelError(model, f"expected scores that are numbers, found an array of {array.dtype}")
    # Integers need float64: float32 holds them exactly only up to 2**24.
    return array.astype(np.float32 if array.dtype == np.float16 else np.float64)
