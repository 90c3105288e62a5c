"""A request on its way into a spool: blocks that count together or not at all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import anyio

from streambatch.core.chunks import Chunk
from streambatch.spool.parts import Key, Part


class Request(NamedTuple):
    """Blocks that count together: at least one. staged: where those parts lie that have nothing packed, in order."""

    parts: Sequence[Part]
    staged: int | None
    key: Key | None

    @property
    def block_bytes(self) -> int:
        return sum(part.block_bytes for part in self.parts)


class Unit:
    """A request on its way to the disk. chunks: its records, where they are held in memory; None where staged.

    is_awaited: somebody waits until it is durable, and is told if it can't be stored.
    """

    def __init__(self, request: Request, chunks: list[Chunk | None], *, is_awaited: bool) -> None:
        self.request, self.chunks, self.is_awaited = request, chunks, is_awaited
        self.block_bytes = request.block_bytes
        self.held = sum(chunk.size for chunk in chunks if chunk is not None)
        self.failure: Exception | None = None
        self._done = anyio.Event()

    def settle(self, failure: Exception | None = None) -> None:
        self.failure = failure
        self._done.set()

    async def durable(self) -> None:
        """Wait until it is. Raises SourceError, and SpoolFull at a stop, when it never will be."""
        await self._done.wait()
        if self.failure is not None:
            raise self.failure
