"""What the suite for sinks keeps of an output from one run to the next, as a pipeline does in its state folder.

A mark always goes with the batches that it covers, and is given back as it was read from JSON.
"""

from __future__ import annotations

import msgspec

from streambatch.core.checkpoints import OutputMark
from streambatch.core.parts import Writer
from streambatch.testing.rows import Row


class Kept:
    """What a state folder keeps of an output: its mark, and the batches that it covers."""

    def __init__(self) -> None:
        self.mark: OutputMark | None = None
        self.acked: list[list[Row]] = []
        self.written: list[list[Row]] = []
        self._at_open = 0

    def restore(self, writer: Writer) -> None:
        """Forget what was not acked, and tell the writer where to go back to."""
        self.written = list(self.acked)
        self._at_open = len(self.written)
        mark = None if self.mark is None else msgspec.json.decode(msgspec.json.encode(self.mark))
        writer.restore(mark, self.commit)

    async def commit(self, mark: OutputMark) -> None:
        self.mark, self.acked = mark, list(self.written)

    async def checkpoint(self, writer: Writer) -> None:
        """Ack what is durable, as a pipeline does while the output is written."""
        # Before the sync, as in a pipeline: what is written during it belongs to the next checkpoint.
        mark, count = writer.mark(), len(self.written)
        await writer.sync()
        if writer.is_segmented:
            count = min(count, self._at_open + writer.durable_writes)
        # `commit` may have acked more already, with the mark of a segment that was closed.
        if count >= len(self.acked):
            self.mark, self.acked = mark, self.written[:count]
