"""The layout of payloads in an output file: as they are, compressed, as one Arrow stream, as Parquet. Pure.

A failed write can be tried again: a container returns the bytes for the file, and is called again for the same payload.
"""

from __future__ import annotations

from typing import Literal, Protocol

Compression = Literal["none", "gzip", "zstd"]

HEAD_BYTES = 16 << 20
"""More than what comes before the first payload in any file."""


class Misfit(Exception):
    """A payload's columns can't go into the same file as those before."""


class Container(Protocol):
    """The layout of one file after another."""

    is_whole_only: bool
    """Whether a file can't be read before its end is written."""
    is_quick: bool
    """Whether calls are quick enough for the event loop."""
    is_ended: bool
    """Whether the file takes no more payloads."""
    held: int
    """Bytes taken in that belong into the file and aren't in `backlog` yet, about."""
    backlog: bytes
    """Bytes that go into the file before all others; the caller empties it once they are written."""

    def begin(self) -> None:
        """Start a file; bytes held back for the one before are dropped."""
        ...

    def resume(self, head: bytes) -> None:
        """Continue a file that was cut where a payload ended. Raises ValueError for a file of another kind.

        head: the file's first bytes, `HEAD_BYTES` or all there are.
        """
        ...

    def add(self, payload: bytes, *, is_first: bool) -> bytes:
        """Return the bytes to append to the file for a payload. Raises Misfit. is_first: the file is still empty.

        An empty result means that the container holds the payload now. After any other result the same payload may be
        added again.
        """
        ...

    def end(self) -> None:
        """Put the bytes that complete the file into `backlog`; a second call adds nothing."""
        ...
