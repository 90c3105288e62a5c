"""Whether all numbers of a batch are finite, at the price of one dot product."""

import math

import numpy as np

from streambatch.core.types import FloatArray


def all_finite(x: FloatArray) -> bool:
    """Whether `x`, of any shape, holds neither NaN nor infinity."""
    flat = x.ravel()
    # A sum of squares is finite only if every term is. Where large numbers make it overflow, each is looked at.
    return math.isfinite(np.vdot(flat, flat)) or bool(np.isfinite(flat).all())
