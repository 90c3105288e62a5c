"""Features to test parts with, and comparisons of arrays: bit for bit, or within a relative tolerance."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from streambatch.core.types import BoolArray, FloatArray

LARGE = 5000
SIZES = (1, 2, 3, 64, LARGE)
"""Rows per call."""


def features(rows: int, shape: Sequence[int], dtype: str) -> FloatArray:
    """Return (rows, *shape) normally distributed numbers, the same for the same arguments."""
    # The number of rows is the seed: a second run, and another process, test the same numbers.
    return np.random.default_rng(rows).normal(size=(rows, *shape)).astype(dtype)


def with_nan(x: FloatArray, row: int) -> FloatArray:
    """Return a copy with a NaN in one row."""
    y = x.copy()
    y[row, ...] = np.nan
    return y


def finite(x: FloatArray) -> bool:
    return bool(np.isfinite(x).all())


def same(x: FloatArray | BoolArray, y: FloatArray | BoolArray) -> bool:
    """Whether all numbers are equal; one row is compared with many by broadcasting, and NaN equals NaN."""
    first, second = np.broadcast_arrays(x, y)
    return bool(np.array_equal(first, second, equal_nan=True))


def alike(x: FloatArray, y: FloatArray, tolerance: float) -> bool:
    """Whether shapes are equal and numbers differ by at most `tolerance` times the largest."""
    if np.shape(x) != np.shape(y):
        return False
    # Relative to the largest number: one next to zero may change much, relatively, by rounding alone.
    largest = float(np.max(np.abs(np.nan_to_num(y)), initial=0.0))
    return bool(np.allclose(x, y, rtol=tolerance, atol=tolerance * largest, equal_nan=True))
