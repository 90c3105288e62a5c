"""Records from standard input, to its end. A pipe, a terminal or a file is one partition.

The descriptor is shared with the process that started this one, so its flags are left alone. A pipe or terminal is read
when there is something to read; a file, which can't be waited for, is read in a worker thread, one block at a time.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from dataclasses import KW_ONLY
from typing import Annotated

import anyio
import anyio.to_thread
from pydantic import Field

from streambatch.codecs.formats import StreamFormat, framing_for_format
from streambatch.core.allocator import keep_freed_memory
from streambatch.core.chunks import Partition
from streambatch.core.errors import SourceError
from streambatch.core.feed import Feed
from streambatch.core.intake import Intake
from streambatch.core.options import options
from streambatch.core.parts import Claim, Reader, Site, Source
from streambatch.core.units import Size

READ_BYTES = 1 << 20
STDIN = 0


@options
class StdinSource(Source):
    """Reads standard input until it ends."""

    format: StreamFormat = "jsonl"
    """How its bytes become records."""
    _: KW_ONLY
    name: str = "stdin"
    max_record_bytes: Annotated[Size, Field(ge=1)] = 1 << 20
    """A longer record is not scored: it becomes a dead letter."""

    @property
    def is_finite(self) -> bool:
        return True

    def build(self, site: Site) -> StdinReader:
        return StdinReader(self)

    def claims(self) -> Iterable[Claim]:
        return [Claim("stdin", "type", "")]


class StdinReader(Reader):
    """Reads what the process was given as standard input."""

    def __init__(self, options: StdinSource) -> None:
        self.name, self._options = options.name, options

    async def run(self, intake: Intake) -> None:
        """Read to the end, or until cancelled. Raises SourceError when standard input is closed or can't be read."""
        # A process that starts without standard input gives descriptor 0 to the first file that it opens.
        if sys.__stdin__ is None:
            raise SourceError(self.name, "standard input is closed; pipe something in, or redirect a file")
        keep_freed_memory()
        partition = Partition(self.name, f"{intake.run_id}-1")
        options = self._options
        framer = framing_for_format(options.format).framer(partition, max_record_bytes=options.max_record_bytes)
        feed = Feed(intake, framer, self.name)
        try:
            while block := await self._read(feed):
                await feed.push(block)
            await feed.end()
        finally:
            feed.release()

    async def _read(self, feed: Feed) -> bytes:
        """Return what there is, with room made for it; nothing at the end."""
        while True:
            try:
                is_pollable = await _wait_readable()
                # Only when there is something to read: a quiet terminal must not hold a part of the memory budget.
                await feed.room(READ_BYTES)
                if is_pollable:
                    return os.read(STDIN, READ_BYTES)
                return await anyio.to_thread.run_sync(os.read, STDIN, READ_BYTES)
            # Another process that shares the pipe has taken what was there.
            except BlockingIOError:
                continue
            except OSError as error:
                await feed.end(cut_off=True)
                raise SourceError(self.name, f"can't read standard input: {error.strerror}") from error


async def _wait_readable() -> bool:
    """Wait until there is something to read. Returns False for what can't be waited for, such as a file."""
    try:
        await anyio.wait_readable(STDIN)
    # epoll refuses regular files with EPERM.
    except PermissionError:
        return False
    return True
