"""A file open for reading from a position to its end, decompressed on the way.

A read that fails is tried again until it works: every byte is returned once, however often the handle is lost.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
from collections.abc import Iterator
from functools import partial
from types import TracebackType
from typing import Self

from anyio import to_thread

from streambatch.codecs.compression import Corrupt, Unpacker, compression_of, unpacker
from streambatch.connectors.files.globs import FileStat, folder_device, kind_of, stat_of
from streambatch.connectors.files.identity import HEAD_BYTES, NOTHING_KNOWN, Identity, identity_of
from streambatch.connectors.files.opening import open_without_waiting
from streambatch.connectors.files.options import ReadingOptions
from streambatch.connectors.files.outage import Outages
from streambatch.core.errors import OptionError, SourceError

BLOCK_BYTES = 1 << 20
"""The most that is read, or decompressed, at once."""
COMPRESSED_BYTES = 256 << 10
"""Compressed bytes read at once; held beside the budget, one such block per source."""


class CutBack(Exception):
    """A file is not what was read before: it begins differently, or ends before the position."""


class InputFile:
    """A file open for reading from its start. Raises SourceError with the path.

    stat: what it was when it was found. identity: of the file as far as it was read.
    """

    def __init__(self, options: ReadingOptions, path: str, stat: FileStat, outages: Outages) -> None:
        self._options, self.path, self._outages = options, path, outages
        self._handle: io.FileIO
        self._unpacker: Unpacker | None = None
        self._head = b""
        self._is_broken = False
        self.stat, self.identity = stat, NOTHING_KNOWN
        self.read_to = 0
        """How many bytes were read, as they lie in the file."""
        self.has_shrunk = False
        """Whether, at its end, the file was shorter than it had been, or than what was read."""

    async def __aenter__(self) -> Self:
        with naming_errors(self._options.source, self.path):
            await self._outages.hold(self.path, partial(to_thread.run_sync, self._open))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._handle.close()

    def check(self, identity: Identity) -> None:
        """Raise CutBack unless this can be the file of that identity. Call it before reading."""
        if not identity.fits(self._head):
            raise CutBack

    async def read(self, size: int) -> bytes:
        """Return the next bytes, at most `size`, none only at the end."""
        with naming_errors(self._options.source, self.path):
            if self._unpacker is None:
                return await self._read_raw(size)
            return await self._inflate(self._unpacker, size)

    async def skip(self, size: int) -> None:
        """Pass over so many bytes. Raises CutBack when there are fewer."""
        if self._unpacker is None:
            self.read_to += size
            if self.read_to > self.stat.size:
                raise CutBack
            return
        while size:
            block = await self.read(min(BLOCK_BYTES, size))
            if not block:
                raise CutBack
            size -= len(block)

    def _open(self) -> None:
        handle = open_found(self._options.source, self.path, self.stat)
        try:
            status = os.fstat(handle.fileno())
            head = os.pread(handle.fileno(), HEAD_BYTES, 0)
            self._unpacker = unpacker(compression_of(head, self._options.compression))
        except BaseException:
            handle.close()
            raise
        self._handle, self._head, self.identity = handle, head, identity_of(head)
        self.stat = stat_of(status, self.stat.folder)

    async def _read_raw(self, size: int) -> bytes:
        # anyio waits for the thread also when cancelled: a handle closed under it could be another file's when it
        # reads.
        block = await self._outages.hold(self.path, partial(to_thread.run_sync, self._try_to_read, size))
        self.read_to += len(block)
        return block

    def _try_to_read(self, size: int) -> bytes:
        # After a server's restart an old handle may be stale for good, while a new one works.
        if self._is_broken:
            self._open_again()
        fd = self._handle.fileno()
        try:
            block = os.pread(fd, size, self.read_to)
            # The file may have grown since it was opened: its identity covers as much of its head as was read.
            if self.identity.length < min(HEAD_BYTES, self.read_to + len(block)):
                self.identity = identity_of(os.pread(fd, HEAD_BYTES, 0))
            if not block:
                self.has_shrunk = max(self.stat.size, self.read_to) > os.fstat(fd).st_size
        except OSError as error:
            self._is_broken = True
            # The server of a network file system knows no such file any more: no handle will ever lead to it.
            if error.errno == errno.ESTALE and not os.path.lexists(self.path):
                raise gone(self._options.source, self.path) from error
            raise
        self._is_broken = False
        return block

    def _open_again(self) -> None:
        """Take another handle, unless no name leads to the file any more. Raises OSError while that fails."""
        try:
            handle = io.FileIO(self.path, opener=open_without_waiting)
        except FileNotFoundError:
            return
        try:
            if not self.identity.fits(os.pread(handle.fileno(), HEAD_BYTES, 0)):
                raise SourceError(
                    self._options.source, f"{self.path} was replaced while it was read; run again to read it"
                )
        except BaseException:
            handle.close()
            raise
        self._handle.close()
        self._handle = handle

    async def _inflate(self, unpacker: Unpacker, size: int) -> bytes:
        while True:
            while not unpacker.needs_input():
                block = await to_thread.run_sync(unpacker.inflate, size)
                if block:
                    return block
            compressed = await self._read_raw(COMPRESSED_BYTES)
            if not compressed:
                unpacker.end()
                return b""
            unpacker.give(compressed)


def open_found(source: str, path: str, stat: FileStat) -> io.FileIO:
    """Open a file that was found. Raises OSError, or SourceError when it is gone, or no file. Blocking."""
    try:
        handle = io.FileIO(path, opener=open_without_waiting)
    except FileNotFoundError:
        # Without its file system a path leads nowhere too, and that is an outage which passes.
        if folder_device(path) == stat.folder:
            raise gone(source, path) from None
        raise OSError(errno.ENODEV, "the file system it was on is not mounted") from None
    kind = kind_of(os.fstat(handle.fileno()).st_mode)
    if kind is not None:
        handle.close()
        raise SourceError(source, f"{path} is {kind}, not a file")
    return handle


def gone(source: str, path: str) -> SourceError:
    """Return the error for a file that was there, and can't be waited for."""
    return SourceError(source, f"{path}: No such file any more; it was there when the run began; run again without it")


@contextlib.contextmanager
def naming_errors(source: str, path: str) -> Iterator[None]:
    """Raise what is wrong with a file as SourceError."""
    try:
        yield
    except OSError as error:
        raise SourceError(source, f"{path}: {error.strerror}") from error
    except OptionError as error:
        raise SourceError(source, f"{path}: {error}") from error
    except Corrupt as error:
        raise SourceError(source, f"{path}: {error}; the records before it were read") from error
