"""Finding the rows of a payload that a sink refuses, by halving. Pure: the driver sends the parts, in order.

The same payload is cut the same way each time, so that parts, too, have ids that stay.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from streambatch.core.bisect import Bisection
from streambatch.core.errors import SinkRefused
from streambatch.core.types import IntArray

_NEWLINE = 10


class RowSpan(NamedTuple):
    """Rows `start` to `stop` of a payload."""

    start: int
    stop: int
    payload: bytes
    id: str
    """The id to send them under: it is made of the batch's, and stays."""


class Refusals:
    """Rows still to send after a payload was refused, and which are guilty.

    Call `next_part` until it returns None, and `refused` when a part is. payload: JSON lines, a row each, not empty.
    """

    def __init__(self, payload: bytes, batch_id: str, error: SinkRefused) -> None:
        self._payload, self._batch_id = payload, batch_id
        self._ends = ends_of_lines(payload)
        self._bisection = Bisection.after(len(self._ends), error)

    def next_part(self) -> RowSpan | None:
        """Return the part to send next; None when all guilty rows are known."""
        span = self._bisection.next_span()
        if span is None:
            return None
        start, stop = span.start, span.stop
        payload = self._payload[int(self._ends[start - 1]) if start else 0 : int(self._ends[stop - 1])]
        return RowSpan(start, stop, payload, f"{self._batch_id}.{start}-{stop}")

    def refused(self, error: SinkRefused) -> None:
        """Halve the last part; a part of one row is guilty."""
        self._bisection.failed(error)

    @property
    def guilty(self) -> list[tuple[int, SinkRefused]]:
        """Return the rows that were refused alone, in order, with what the sink said."""
        return self._bisection.guilty


def ends_of_lines(payload: bytes) -> IntArray:
    """Return (n,) int64: where each line ends, its newline included; the last may lack one."""
    ends = np.flatnonzero(np.frombuffer(payload, np.uint8) == _NEWLINE) + 1
    return ends if payload.endswith(b"\n") or not payload else np.append(ends, len(payload))
