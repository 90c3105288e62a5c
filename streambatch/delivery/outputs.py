"""The two outputs of a pipeline, the sink and the dead letters: each call is held through outages.

A batch is in both before it counts as written, and durable in both before it counts as acked.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from functools import partial

from streambatch.core.checkpoints import CommitMark, OutputMark
from streambatch.core.parts import Writer
from streambatch.delivery.outages import OutputOutages

SINK, DEAD_LETTERS = "sink", "dead_letters"
"""The names of the two outputs in checkpoints."""

Marks = Mapping[str, OutputMark]
"""How far the outputs go, by what checkpoints call them."""


class HeldOutput:
    """A writer whose calls are made again through its outages."""

    __slots__ = ("_outages", "_synced", "writer", "writes")

    def __init__(self, writer: Writer, outages: OutputOutages) -> None:
        self.writer, self._outages = writer, outages
        self.writes = 0
        """Writes that succeeded."""
        self._synced = 0

    @property
    def durable_writes(self) -> int:
        """How many of the writes were durable when `sync` or `finish` last returned."""
        return self.writer.durable_writes if self.writer.is_segmented else self._synced

    async def outlast(self, call: Callable[[], Awaitable[object]]) -> None:
        """Await a call until it meets no outage of this output."""
        await self._outages.outlast(self.writer.name, call)

    async def open(self, header: bytes) -> None:
        """Open the output."""
        await self.outlast(partial(self.writer.open, header))

    async def write(self, payload: bytes) -> None:
        """Write whole records."""
        await self.outlast(partial(self.writer.write, payload))
        # Only now: a write that outlasts an outage is made several times and counts once.
        self.writes += 1

    async def write_batch(self, payload: bytes, batch_id: str) -> None:
        """Write records of one batch, or of a part of it, under an id. `writes` is for the caller to count."""
        await self.outlast(partial(self.writer.write_batch, payload, batch_id))

    async def sync(self) -> None:
        """Make durable what was written until now, as far as that can be without closing a segment."""
        writes = self.writes  # a write may go on meanwhile
        await self.outlast(self.writer.sync)
        self._synced = max(self._synced, writes)

    async def close_due(self) -> None:
        """Close a segment that is old enough."""
        if self.writer.is_segmented:
            await self.outlast(self.writer.close_due)

    async def finish(self) -> None:
        """Complete the open segment."""
        if self.writer.is_segmented:
            await self.outlast(self.writer.finish)


class OutputPair:
    """The sink and the dead letters together."""

    def __init__(self, sink: Writer, dead_letters: Writer, outages: OutputOutages) -> None:
        self.sink, self.dead_letters = HeldOutput(sink, outages), HeldOutput(dead_letters, outages)
        self.outages = outages

    def restore(self, marks: Marks, commit_sink: CommitMark, commit_dead_letters: CommitMark) -> None:
        """Give the outputs, which are not open, the marks of the last checkpoint, and what stores later ones."""
        if self.sink.writer.is_rewindable:
            self.sink.writer.restore(marks.get(SINK), commit_sink)
        if self.dead_letters.writer.is_rewindable:
            self.dead_letters.writer.restore(marks.get(DEAD_LETTERS), commit_dead_letters)

    def marks(self) -> dict[str, OutputMark]:
        """Return how far the outputs go with all that was written until now."""
        marks = {DEAD_LETTERS: self.dead_letters.writer.mark()}
        if self.sink.writer.is_rewindable:
            marks[SINK] = self.sink.writer.mark()
        return marks

    async def open(self, header: bytes) -> None:
        """Open both. header: what a fresh sink starts with."""
        await self.sink.open(header)
        await self.dead_letters.open(b"")

    async def sync(self) -> None:
        """Make both durable."""
        await self.sink.sync()
        await self.dead_letters.sync()

    async def close_due(self) -> None:
        """Close segments that are old enough. For the task that writes."""
        await self.sink.close_due()
        await self.dead_letters.close_due()

    async def finish(self) -> None:
        """Complete both: nothing more will be written."""
        await self.sink.finish()
        await self.dead_letters.finish()
