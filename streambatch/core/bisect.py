"""Finding the rows that a call can't take, by halving: pure, so that sync and async calls are driven alike.

For one guilty row among n the halves cost at most 2*log2(n) further calls.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from streambatch.core.types import IntArray


class Halving:
    """Rows still to try, what succeeded, and who is to blame.

    Ask for `next_span` until it is None, first for all rows together; answer each with `succeeded`, `failed` or
    `given_up`.
    """

    def __init__(self, rows: int) -> None:
        self.results: list[tuple[int, int, Any]] = []
        self.guilty: list[tuple[int, Exception]] = []
        self._todo: list[tuple[int, int]] = [(0, rows)] if rows else []
        self._current = (0, 0)

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

    def given_up(self, error: Exception) -> None:
        """Learn that the span can't be taken, and that halves of it would fare no better."""
        self.guilty += [(row, error) for row in range(*self._current)]

    def kept(self) -> IntArray:
        """Return the rows that some call took, in order."""
        spans = [np.arange(start, stop) for start, stop, _ in self.results]
        return np.concatenate(spans) if spans else np.empty(0, np.int64)


def isolate(call: Callable[[slice], Any], rows: int, error: Exception) -> Halving:
    """Halve until all guilty rows stand alone; `call` takes the rows to try, `error` is what all of them gave."""
    halving = Halving(rows)
    halving.next_span()
    halving.failed(error)
    while (span := halving.next_span()) is not None:
        try:
            halving.succeeded(call(span))
        except Exception as failure:
            halving.failed(failure)
    return halving
