"""The sink that keeps nothing: for measuring everything before it."""

from __future__ import annotations

from typing import Literal

from streambatch.core.options import options
from streambatch.core.parts import Sink, Site, Writer


@options
class NoneSink(Sink):
    """Count the bytes of the scores and throw them away."""

    name: str = "none"
    """Label of the sink in metrics and messages."""

    @property
    def format(self) -> Literal["jsonl"]:  # type: ignore[override]  # it is always the same
        """Scores are encoded all the same, so that what is measured is what a file would get."""
        return "jsonl"

    def build(self, site: Site) -> NoneWriter:
        return NoneWriter(self.name)


class NoneWriter(Writer):
    """Counts bytes."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._length = 0

    async def open(self, header: bytes) -> None:
        """Start a count of its own."""
        self._length = len(header)

    async def write(self, payload: bytes) -> None:
        """Count a payload."""
        self._length += len(payload)

    async def sync(self) -> int:
        """Return the bytes counted."""
        return self._length

    async def close(self) -> None:
        """Do nothing: there is nothing to give back."""
