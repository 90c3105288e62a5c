"""The running part of a file sink: opens its output as the config or the last checkpoint says, and writes to it.

An output that is already there is only touched when the config says so.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from streambatch.connectors.files.output import Output, OutputOptions
from streambatch.core.checkpoints import CommitMark, OutputMark
from streambatch.core.errors import HeldError, SinkError
from streambatch.core.parts import Writer

IfExists = Literal["error", "append", "replace"]

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class FileWriter(Writer):
    """Writes the output of one sink, once. One task writes and closes; any may sync.

    Raises SinkError when a file can't be opened or written, HeldError when another process writes to it or it holds
    an output that `if_exists` doesn't allow to touch. A write that failed may be tried again.
    """

    is_rewindable = True
    is_segmented = True

    def __init__(self, output: Output, if_exists: IfExists) -> None:
        self.name, self._output, self._if_exists = output.options.owner, output, if_exists

    @property
    def durable_writes(self) -> int:
        """How many of the writes since `open` are durable and readable."""
        return self._output.durable

    def restore(self, mark: OutputMark | None, commit: CommitMark) -> None:
        """Take over, before `open`, how far the output was acked."""
        self._output.file.restore(mark, commit)

    def mark(self) -> OutputMark:
        """Return how far the output goes: the number of the open segment and its length in bytes, as far as it holds
        scores that can be kept, and whether it is being closed."""
        return self._output.file.mark()

    async def open(self, header: bytes) -> None:
        """Claim the output and start it with `header` if it is empty; or take it back to where it was acked to."""
        # A failed open gives everything back, so that it can be tried again.
        try:
            await self._start(header)
        except BaseException:
            await self._output.close()
            raise

    async def write(self, payload: bytes) -> None:
        """Add whole records; when it raises, none of them is there."""
        await self._output.write(payload)

    async def sync(self) -> int:
        """Make all that was written to files durable. Returns their length in bytes.

        What that doesn't make readable, see `durable_writes`, isn't durable.
        """
        return await self._output.sync()

    async def close_due(self) -> None:
        """Close the segment if it is old enough. For the task that writes."""
        await self._output.close_due()

    async def finish(self) -> None:
        """Complete the open file and close the last segment: nothing more will be written."""
        await self._output.finish()

    async def close(self) -> None:
        """Give the file back; does nothing when it is not open."""
        await self._output.close()

    @property
    def _options(self) -> OutputOptions:
        return self._output.options

    async def _start(self, header: bytes) -> None:
        output, file = self._output, self._output.file
        output.begin(header)
        if file.has_mark:
            await self._take_back()
        else:
            await self._settle(header)
        if not file.is_claimed:
            await file.begin()
            # Another process may have written to it between the look and the claim.
            if file.length and self._if_exists == "error":
                raise self._held(file.file.path)
        if file.rotation is None and file.length == 0 and header:
            await output.write_header()
        file.opened()

    async def _take_back(self) -> None:
        file = self._output.file
        await file.take_back()
        if file.length:
            if self._options.is_plain:
                await file.file.end_line()
            await self._output.resume()

    async def _settle(self, header: bytes) -> None:
        """Do with what is there as the config says."""
        file = self._output.file
        closed = await file.look()
        there = list(closed.values()) + ([file.file.path] if file.length else [])
        if there and self._if_exists == "error":
            raise self._held(there[0])
        if there and self._if_exists == "replace":
            await file.replace(closed)
        elif file.length:
            await self._go_on(header)
        else:
            await file.settle()

    async def _go_on(self, header: bytes) -> None:
        """Go on after what a file holds."""
        file = self._output.file
        if not self._options.is_plain:
            raise HeldError(
                f"sink {self.name}: {file.file.path} is left from a run that was cut off, and can't be "
                'continued; move it away, or set if_exists to "replace"'
            )
        await self._check_columns(header)
        await file.settle()
        await file.file.end_line()
        file.begin_record()

    def _held(self, path: Path) -> HeldError:
        file = self._output.file
        holds = "is already there" if path != self._options.path else f"already holds {file.length} bytes"
        if file.is_restored:
            holds += ", an output without state beside it"
        return HeldError(f'sink {self.name}: {path} {holds}; move it away, or set if_exists to "append" or "replace"')

    async def _check_columns(self, header: bytes) -> None:
        file = self._output.file.file
        # Room for a mark, and for line endings of two bytes, as other programs write them.
        head = await file.head(len(_BYTE_ORDER_MARK) + 2 * len(header))
        head = head.removeprefix(_BYTE_ORDER_MARK).replace(b"\r\n", b"\n") + b"\n"
        if not head.startswith(header.replace(b"\r\n", b"\n")):
            found = head.split(b"\n")[0].decode(errors="replace")
            raise SinkError(
                self.name,
                f"{file.path} starts with {found!r}, and its columns are now {header.decode().rstrip()!r}; "
                'move it away, or set if_exists to "replace"',
            )
