"""Records from blocks of bytes that the program itself brings, for tests and for embedding.

The blocks are read like a file that arrives in pieces: they are cut anywhere, and framed as the format says.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, Iterable
from dataclasses import KW_ONLY
from typing import Annotated

import anyio
import anyio.lowlevel
from pydantic import Field, SkipValidation

from streambatch.codecs.formats import StreamFormat, framing_for_format
from streambatch.core.chunks import Partition
from streambatch.core.errors import OptionError
from streambatch.core.feed import Feed
from streambatch.core.intake import Intake
from streambatch.core.options import options
from streambatch.core.parts import Reader, Site, Source
from streambatch.core.units import Size

BLOCK_BYTES = 1 << 20
"""A larger block is taken in by parts."""
CLOSE_SECONDS = 5.0
"""How long a generator that is left early may take to clean up."""


@options
class MemorySource(Source):
    """Reads blocks of bytes, not single records, from an iterable or asynchronous iterable until it ends.

    Each run iterates `blocks` again: a list can be read twice, a generator only once, and comes empty the second time.
    """

    blocks: SkipValidation[Iterable[bytes] | AsyncIterable[bytes]]
    """Consecutive bytes of one partition; a record may span several blocks, a block hold many records."""
    _: KW_ONLY
    name: str = "memory"
    format: StreamFormat = "jsonl"
    """How the blocks become records."""
    max_record_bytes: Annotated[Size, Field(ge=1)] = 1 << 20
    """A longer record is not scored: it becomes a dead letter."""

    def __post_init__(self) -> None:
        # A single block can be iterated too, but brings integers or characters.
        if isinstance(self.blocks, bytes | bytearray | memoryview | str):
            raise OptionError("blocks", f"a single {type(self.blocks).__name__}", "an iterable of bytes: [block]")

    @property
    def is_finite(self) -> bool:
        return True

    def build(self, site: Site) -> MemoryReader:
        return MemoryReader(self)


class MemoryReader(Reader):
    """Reads blocks that the program brings."""

    def __init__(self, options: MemorySource) -> None:
        self.name, self._options = options.name, options

    async def run(self, intake: Intake) -> None:
        """Read all blocks, or until cancelled; an asynchronous generator is closed either way."""
        options = self._options
        partition = Partition(self.name, f"{intake.run_id}-1")
        framer = framing_for_format(options.format).framer(partition, max_record_bytes=options.max_record_bytes)
        feed = Feed(intake, framer, self.name)
        try:
            if isinstance(options.blocks, AsyncIterable):
                await self._push_all(feed, options.blocks)
            else:
                for block in options.blocks:
                    # A plain iterable awaits nothing: without this, other tasks would not run while there is room.
                    await anyio.lowlevel.checkpoint()
                    await _push(feed, block)
            await feed.end()
        finally:
            feed.release()

    async def _push_all(self, feed: Feed, blocks: AsyncIterable[bytes]) -> None:
        try:
            async for block in blocks:
                await _push(feed, block)
        finally:
            if isinstance(blocks, AsyncGenerator):
                # A generator that is only dropped is closed by the event loop's hook, at some later time and in another
                # task.
                with anyio.move_on_after(CLOSE_SECONDS, shield=True):
                    await blocks.aclose()


async def _push(feed: Feed, block: bytes) -> None:
    for at in range(0, len(block), BLOCK_BYTES):
        part = block[at : at + BLOCK_BYTES]
        await feed.room(len(part))
        await feed.push(part)
