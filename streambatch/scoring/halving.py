"""Finding the rows that a call can't take, by halving: pure, so that sync and async calls are driven alike.

For one guilty row among n the halves cost at most 2*log2(n) further calls.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from streambatch.records import IntArray


class Halving:
    """Rows still to try after the whole of them failed, what succeeded, and who is to blame.

    Ask for `next_span` until it is None; answer each with `succeeded` or `failed`.
    """

    def __init__(self, rows: int, error: Exception) -> None:
        self.results: list[tuple[int, int, Any]] = []
        self.guilty: list[tuple[int, Exception]] = []
        self._todo: list[tuple[int, int]] = []
        self._current = (0, rows)
        self.failed(error)

    def next_span(self) -> slice | None:
        """Return the rows to try next; None when all is known."""
        if not self._todo:
            return None
        self._current = self._todo.pop()
        return slice(*self._current)

    def succeeded(self, result: Any) -> None:
        """Learn what the call made of the span."""
        self.results.append((*self._current, result))

    def failed(self, error: Exception) -> None:
        """Learn that the span can't be taken; a span of one row is guilty."""
        start, stop = self._current
        if stop - start == 1:
            self.guilty.append((start, error))
            return
        middle = (start + stop) // 2
        self._todo += [(middle, stop), (start, middle)]

    def kept(self) -> IntArray:
        """Return the rows that some call took, in order."""
        spans = [np.arange(start, stop) for start, stop, _ in self.results]
        return np.concatenate(spans) if spans else np.empty(0, np.int64)


def isolate(call: Callable[[slice], Any], rows: int, error: Exception) -> Halving:
    """Halve until all guilty rows stand alone; `call` takes the rows to try."""
    halving = Halving(rows, error)
    while (span := halving.next_span()) is not None:
        try:
            halving.succeeded(call(span))
        except Exception as failure:
            halving.failed(failure)
    return halving
