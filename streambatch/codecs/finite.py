"""Whether all numbers of a batch are finite, at the price of one dot product."""

import math

import numpy as np

from streambatch.core.types import FloatArray


def all_finite(x: FloatArray) -> bool:
    """Whether `x`, of any shape, holds neither NaN nor infinity.

    A sum of squares is finite only if every term is; where it overflows, the numbers are looked at one by one.
    """
    flat = x.ravel()
    return math.isfinite(np.vdot(flat, flat)) or bool(np.isfinite(flat).all())
