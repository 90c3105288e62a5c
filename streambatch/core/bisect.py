"""Finding the rows that a call can't take, by halving. Pure, so that sync and async calls are driven alike.

For one guilty row among n the halves cost at most 2*log2(n) further calls. Rows are always cut at the same places, so
that parts may have names that stay.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

import numpy as np

from streambatch.core.types import IntArray

FailureT = TypeVar("FailureT", bound=Exception)


class Bisection(Generic[FailureT]):
    """Rows still to try, what succeeded, and which rows are guilty.

    Call `next_span` until it returns None. The first span holds all rows. Answer each span with `succeeded`, `failed`
    or `given_up`.
    """

    __slots__ = ("_current", "_todo", "guilty", "results")

    def __init__(self, rows: int) -> None:
        self.results: list[tuple[int, int, Any]] = []
        """Start, stop and result of each span that succeeded, in order."""
        self.guilty: list[tuple[int, FailureT]] = []
        """Each row that failed, in order, with its error."""
        self._todo: list[tuple[int, int]] = [(0, rows)] if rows else []
        self._current = (0, 0)

    @classmethod
    def after(cls, rows: int, error: FailureT) -> Bisection[FailureT]:
        """Return the bisection of rows of which all together have failed already."""
        bisection = cls(rows)
        bisection.next_span()
        bisection.failed(error)
        return bisection

    def next_span(self) -> slice | None:
        """Return the rows to try next; None when all is known."""
        if not self._todo:
            return None
        self._current = self._todo.pop()
        return slice(*self._current)

    def succeeded(self, result: Any) -> None:
        """Keep what the call made of the span."""
        self.results.append((*self._current, result))

    def failed(self, error: FailureT) -> None:
        """Halve the span; a span of one row is guilty."""
        start, stop = self._current
        if stop - start == 1:
            self.guilty.append((start, error))
            return
        # Always the middle: the parts of a batch that is tried again must get the names that they had.
        middle = (start + stop) // 2
        # The first half comes out first, so that results are in order.
        self._todo += [(middle, stop), (start, middle)]

    def given_up(self, error: FailureT) -> None:
        """Blame the whole span: halves of it would fare no better."""
        self.guilty += [(row, error) for row in range(*self._current)]

    def kept(self) -> IntArray:
        """Return the rows that some call took, in order."""
        spans = [np.arange(start, stop) for start, stop, _ in self.results]
        return np.concatenate(spans) if spans else np.empty(0, np.int64)


def isolate(call: Callable[[slice], Any], rows: int, error: Exception) -> Bisection[Exception]:
    """Halve until all guilty rows stand alone; `call` takes the rows to try, `error` is what all of them gave."""
    bisection = Bisection.after(rows, error)
    while (span := bisection.next_span()) is not None:
        try:
            bisection.succeeded(call(span))
        except Exception as failure:
            bisection.failed(failure)
    return bisection
