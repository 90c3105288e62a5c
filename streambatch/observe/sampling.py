"""Samples a few rows of each batch, to watch how features and scores are distributed.

Nothing is changed, and the held rows are bounded: when batches come faster than rows are drained, some batches are
skipped, evenly. A batch costs a few microseconds, whatever its size.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from streambatch.core.types import FloatArray

HELD_ROWS = 1024
"""Rows that are held until they are drained."""


class Samples:
    """Rows from any thread, until they are drained. columns: which numbers of a row are kept; None: the first ones."""

    def __init__(self, width: int, rows_per_batch: int, columns: Sequence[int] | None = None) -> None:
        self._columns = None if columns is None else _selection(columns)
        self._rows = np.empty((HELD_ROWS, width), np.float32)
        self._held = self._batches = self._offered = 0
        self._every = 1
        self._width, self._rows_per_batch = width, rows_per_batch
        self._turn = threading.Lock()

    def add(self, batch: FloatArray) -> None:
        """Sample some rows of a batch, (n, ...): evenly spread, and other ones each time."""
        count = len(batch)
        with self._turn:
            self._batches += 1
            self._offered += min(count, self._rows_per_batch)
            if count and self._held < HELD_ROWS and self._batches % self._every == 0:
                self._take(batch, count)

    def drain(self) -> FloatArray:
        """Return the rows sampled since the last call: (rows, width) float32."""
        with self._turn:
            rows = self._rows[: self._held].copy()
            self._every = max(1, -(-self._offered // HELD_ROWS))
            self._held = self._offered = 0
            return rows

    def _take(self, batch: FloatArray, count: int) -> None:
        step = -(-count // self._rows_per_batch)
        rows = batch[self._batches % min(step, count) :: step].reshape(-1, batch[0].size)[: HELD_ROWS - self._held]
        end = self._held + len(rows)
        if self._columns is not None:
            self._rows[self._held : end] = rows[:, self._columns]
        else:
            width = min(self._width, rows.shape[1])
            self._rows[self._held : end, :width] = rows[:, :width]
            self._rows[self._held : end, width:] = np.nan
        self._held = end


def _selection(columns: Sequence[int]) -> slice | npt.NDArray[np.intp]:
    """Return what picks columns: a slice where they are neighbours, which costs less and lets no other thread in."""
    first = columns[0]
    if list(columns) == list(range(first, first + len(columns))):
        return slice(first, first + len(columns))
    return np.array(columns, np.intp)
