"""Finding the rows of a payload that a sink refuses, by halving. Pure: the driver sends the parts, in order.

For one guilty row among n the parts cost at most 2*log2(n) further requests. The same payload is cut the same way each
time, so that parts, too, have ids that stay.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from streambatch.core.errors import SinkRefused
from streambatch.core.types import IntArray

_NEWLINE = 10


class Part(NamedTuple):
    """Rows `start` to `stop` of a payload. id: what to call them, by the id of the batch."""

    start: int
    stop: int
    payload: bytes
    id: str


class Refusals:
    """Rows still to send after a payload was refused, and who is to blame.

    Ask for `next_part` until it is None, and say so when one is `refused`. payload: JSON lines, a row each, not empty.
    guilty: rows that were refused alone, in order.
    """

    def __init__(self, payload: bytes, batch_id: str, error: SinkRefused) -> None:
        self._payload, self._batch_id = payload, batch_id
        self._ends = ends_of_lines(payload)
        self.guilty: list[tuple[int, SinkRefused]] = []
        self._todo: list[tuple[int, int]] = []
        self._current = (0, len(self._ends))
        self.refused(error)

    def next_part(self) -> Part | None:
        """Return what to send next; None when all is known."""
        if not self._todo:
            return None
        start, stop = self._current = self._todo.pop()
        payload = self._payload[int(self._ends[start - 1]) if start else 0 : int(self._ends[stop - 1])]
        return Part(start, stop, payload, f"{self._batch_id}.{start}-{stop}")

    def refused(self, error: SinkRefused) -> None:
        """Learn that the last part was refused; a part of one row is guilty."""
        start, stop = self._current
        if stop - start == 1:
            self.guilty.append((start, error))
            return
        middle = (start + stop) // 2
        self._todo += [(middle, stop), (start, middle)]


def ends_of_lines(payload: bytes) -> IntArray:
    """Return (n,) int64: where each line ends, its newline included; the last may lack one."""
    ends = np.flatnonzero(np.frombuffer(payload, np.uint8) == _NEWLINE) + 1
    return ends if payload.endswith(b"\n") or not payload else np.append(ends, len(payload))
