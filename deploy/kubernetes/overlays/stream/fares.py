"""A model that needs no file: a fare follows from the standardised km, minutes and riders of a ride."""

import numpy as np
from numpy.typing import NDArray


class Fares:
    def score(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """x: (n, 3). Returns (n,)."""
        fares: NDArray[np.float32] = 20.0 + x @ np.array([6.3, 3.6, 0.4], dtype=np.float32)
        return fares
