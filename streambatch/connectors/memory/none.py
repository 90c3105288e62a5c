"""The sink that keeps nothing: for measuring everything before it."""

from __future__ import annotations

from functools import cached_property
from typing import Literal

from streambatch.core.options import options


@options
class NoneSink:
    """Count the bytes of the scores and throw them away."""

    name: str = "none"
    """Label of the sink in metrics and messages."""

    @property
    def format(self) -> Literal["jsonl"]:
        """Scores are encoded all the same, so that what is measured is what a file would get."""
        return "jsonl"

    @property
    def length(self) -> int:
        """Bytes thrown away so far."""
        return self._tally.length

    async def open(self, header: bytes) -> None:
        """Start a count of its own."""
        self._tally.length = len(header)

    async def write(self, payload: bytes) -> None:
        """Count a payload."""
        self._tally.length += len(payload)

    async def sync(self) -> int:
        """Return the bytes counted."""
        return self._tally.length

    async def close(self) -> None:
        """Do nothing: there is nothing to give back."""

    @cached_property
    def _tally(self) -> _Tally:
        return _Tally()


class _Tally:
    length = 0
