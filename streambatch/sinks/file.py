"""The sink that appends scores to a file, durably.

The file holds whole batches in order: a batch that can't be written leaves nothing behind, and one that was synced
survives a power cut. An output that is already there is only touched when the config says so.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Literal

from streambatch.errors import HeldError, SinkError
from streambatch.files import AppendFile
from streambatch.options import options

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@options
class FileSink:
    """Append scores to one file.

    Raises SinkError when the file can't be opened or written, HeldError when another process writes to it or it holds
    an output that `if_exists` doesn't allow to touch. A write that failed may be tried again.
    """

    path: str
    """Where to write; folders are created."""
    format: Literal["jsonl", "csv"] = "jsonl"
    """`jsonl`: one JSON object a line. `csv`: a header and one row a record."""
    if_exists: Literal["error", "append", "replace"] = "error"
    """An output that is already there: stop, add to it (an unterminated last line is ended first), or empty it."""
    name: str = "file"
    """Label of the sink in metrics and messages."""

    @cached_property
    def _file(self) -> AppendFile:
        return AppendFile(Path(self.path), self.name)

    async def open(self, header: bytes) -> None:
        """Claim the file and start it with `header` if it is empty."""
        await self._file.open()
        try:
            await self._start(header)
        except BaseException:
            await self._file.close()
            raise

    async def write(self, payload: bytes) -> None:
        """Append whole records; when it raises, none of them is in the file."""
        await self._file.write(payload)

    async def sync(self) -> int:
        """Make all that was written durable. Returns the file's length in bytes."""
        return await self._file.sync()

    async def close(self) -> None:
        """Give the file back; does nothing when it is not open."""
        await self._file.close()

    async def _start(self, header: bytes) -> None:
        if self._file.length and self.if_exists == "replace":
            await self._file.truncate(0)
        if self._file.length == 0:
            await self._file.write(header)
            return
        if self.if_exists == "error":
            raise HeldError(
                f"sink {self.name}: {self.path} already holds {self._file.length} bytes; "
                'move it away, or set if_exists to "append" or "replace"'
            )
        await self._check_columns(header)
        await self._file.end_line()

    async def _check_columns(self, header: bytes) -> None:
        head = await self._file.head(len(_BYTE_ORDER_MARK) + 2 * len(header))
        head = head.removeprefix(_BYTE_ORDER_MARK).replace(b"\r\n", b"\n") + b"\n"
        if not head.startswith(header.replace(b"\r\n", b"\n")):
            found = head.split(b"\n")[0].decode(errors="replace")
            raise SinkError(
                self.name,
                f"{self.path} starts with {found!r}, and its columns are now {header.decode().rstrip()!r}; "
                'move it away, or set if_exists to "replace"',
            )
