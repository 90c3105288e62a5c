"""Opens a file at a position: the one place where reading resumes. Blocking: call it in a thread.

A framer at a position hands out the same records as one that has read everything before it.
"""

import io
import os
from collections.abc import Iterator
from typing import NamedTuple

from streambatch.connectors.files.globs import FileId, kind_of
from streambatch.core.chunks import Chunk
from streambatch.core.codec import Framer, FramerStart, Framing

SKIM_BYTES = 1 << 20
"""Read at once of what comes before a position."""


class Opening(NamedTuple):
    """A framer, and the offset of the next byte to feed it."""

    framer: Framer
    read_to: int


def open_file(path: str, key: FileId) -> io.FileIO | None:
    """Return a handle, or None when the path leads nowhere, or to another file than `key` says. Raises OSError."""
    try:
        handle = io.FileIO(path, opener=open_without_waiting)
    except FileNotFoundError:
        return None
    # Of the handle, since the path may lead to another file than when it was looked at.
    status = os.fstat(handle.fileno())
    if key != (status.st_dev, status.st_ino) or kind_of(status.st_mode) is not None:
        handle.close()
        return None
    return handle


def open_without_waiting(path: str, flags: int) -> int:
    """Open a file; of what has turned into a pipe meanwhile, don't wait for the other end."""
    return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)


def opened_at(handle: io.FileIO, position: int, framing: Framing, start: FramerStart) -> Opening:
    """Return a framer for what comes after a record that ended at `position`. start: of the whole partition."""
    framer = framing.framer_from(start)
    if not position:
        return Opening(framer, 0)
    columns = None
    if framing.has_header:
        for _ in _skim(handle, framer, position):
            columns = framer.columns
            if columns is not None:
                break
        else:
            # It is another file since: what is read from here on won't be used.
            return Opening(framer, position)
    return Opening(framing.framer_from(start.at(position, columns)), position)


def opened_after(handle: io.FileIO, size: int, framing: Framing, start: FramerStart) -> Opening:
    """Return a framer for what comes after the last record that ends within the first `size` bytes."""
    # Lines can be told apart from the end; other formats only by reading everything before.
    if framing.name == "lines":
        return opened_at(handle, _last_newline(handle, size), framing, start)
    framer = framing.framer_from(start)
    for _ in _skim(handle, framer, size):
        pass
    return Opening(framer, size)


def _skim(handle: io.FileIO, framer: Framer, size: int) -> Iterator[list[Chunk]]:
    """Let the framer see the bytes up to `size`, a block at a time. Yields what it finds there."""
    at = 0
    while at < size:
        block = os.pread(handle.fileno(), min(SKIM_BYTES, size - at), at)
        if not block:
            return
        yield framer.feed(block, 0.0)
        at += len(block)


def _last_newline(handle: io.FileIO, size: int) -> int:
    """Return the offset after the last newline before `size`, 0 if there is none."""
    end = size
    while end > 0:
        at = max(0, end - SKIM_BYTES)
        found = os.pread(handle.fileno(), end - at, at).rfind(b"\n")
        if found >= 0:
            return at + found + 1
        end = at
    return 0
