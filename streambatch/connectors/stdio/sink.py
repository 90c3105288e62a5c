"""The sink that writes scores to standard output, which it never closes.

A reader of a pipe or terminal that stalls holds the writer back without holding a thread or the event loop, so that a
stop is never stuck behind it. Scores that were written can't be taken back: at least once.
"""

from __future__ import annotations

import errno
import os
import stat
import sys

import anyio
from anyio import to_thread

from streambatch.codecs.formats import TextFormat
from streambatch.core.errors import SinkError, SinkOutage
from streambatch.core.options import options
from streambatch.core.parts import Sink, Site, Writer

_STDOUT = 1
_FULL = (errno.ENOSPC, errno.EDQUOT)
_BLOCK = 64 << 10
"""Bytes per write: what a pipe holds by default on Linux."""


@options
class StdoutSink(Sink):
    """Write scores to standard output."""

    format: TextFormat = "jsonl"
    """`jsonl`: one JSON object a line. `csv`: a header and one row a record."""
    name: str = "stdout"
    """Label of the sink in metrics and messages."""

    def build(self, site: Site) -> StdoutWriter:
        return StdoutWriter(self.name)


class StdoutWriter(Writer):
    """Writes to the standard output of the process."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._output = _Output()

    async def open(self, header: bytes) -> None:
        """Write the header. Raises SinkError when standard output is closed."""
        try:
            self._output.open()
        except OSError as error:
            raise self._error(error) from error
        await self.write(header)

    async def write(self, payload: bytes) -> None:
        """Write whole records. Raises SinkOutage when the disk is full, SinkError also when the reader went away.

        After an error or a cancellation half-way, the next write starts on a new line.
        """
        try:
            await self._output.write(payload)
        except OSError as error:
            raise self._error(error) from error

    async def sync(self) -> int:
        """Make durable what was redirected to a file. Returns the bytes written since `open`."""
        try:
            return await self._output.sync()
        except OSError as error:
            raise self._error(error) from error

    async def close(self) -> None:
        """Let go of standard output, without closing it."""
        self._output.close()

    def _error(self, error: OSError) -> SinkError:
        if isinstance(error, BrokenPipeError):
            return SinkError(self.name, "the reader of standard output went away")
        if error.errno in _FULL:
            return SinkOutage(self.name, f"standard output: {error.strerror}")
        return SinkError(self.name, f"standard output: {error.strerror}")


class _Output:
    """Standard output, opened a second time, without blocking, where it is a pipe or a terminal."""

    def __init__(self) -> None:
        self.length = 0
        self._pipe: int | None = None
        self._is_torn = False

    def open(self) -> None:
        # A process that starts without standard output gives descriptor 1 to the first file that it opens.
        if sys.__stdout__ is None:
            raise OSError(errno.EBADF, "closed since the process started")
        mode = os.fstat(_STDOUT).st_mode
        self.length, self._is_torn, self._is_file = 0, False, stat.S_ISREG(mode)
        if stat.S_ISFIFO(mode) or os.isatty(_STDOUT):
            # O_NONBLOCK on the inherited descriptor would change it for every process that shares it, such as the
            # shell.
            self._pipe = _reopened()

    async def write(self, payload: bytes) -> None:
        # The newline ends the line that was torn, so that it spoils no whole one.
        view = memoryview(b"\n" + payload if self._is_torn else payload)
        while view:
            written = await self._write_some(view[:_BLOCK])
            self.length += written
            view = view[written:]
            # After each block: a cancellation or an error may come before the next one.
            self._is_torn = bool(view)

    async def sync(self) -> int:
        length = self.length
        # fsync fails on a pipe and on a terminal.
        if self._is_file:
            await to_thread.run_sync(os.fsync, _STDOUT)
        return length

    def close(self) -> None:
        pipe, self._pipe = self._pipe, None
        if pipe is not None:
            os.close(pipe)

    async def _write_some(self, view: memoryview) -> int:
        if self._pipe is None:
            # A file is always writable to `poll` and yet blocks while the disk is busy, so a thread waits for it.
            return await to_thread.run_sync(os.write, _STDOUT, view)
        while True:
            try:
                return os.write(self._pipe, view)
            except BlockingIOError:
                await anyio.wait_writable(self._pipe)


def _reopened() -> int | None:
    """Return a non-blocking descriptor of standard output's pipe or terminal, None where the system has no way."""
    try:
        # Opened by its link in /proc it has flags of its own, unlike a descriptor from `dup`.
        return os.open(f"/proc/self/fd/{_STDOUT}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError:
        return None
