"""How payloads lie in an output file: as they are, compressed, as one Arrow stream, as Parquet. Pure.

A container can be tried again: it gives what belongs into the file, and only counts it as there when it is told so.
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
    """What belongs into the file before anything else; whoever wrote it empties it."""

    def begin(self) -> None:
        """Start a file; what was held back of the one before is forgotten."""
        ...

    def resume(self, head: bytes) -> None:
        """Go on in a file that starts so, and was cut where a payload ended. Raises ValueError if it is no such file.

        head: the file's first bytes, `HEAD_BYTES` or all there are.
        """
        ...

    def add(self, payload: bytes, *, is_first: bool) -> bytes:
        """Return what to append to the file for a payload. Raises Misfit. is_first: nothing is in the file yet.

        Only what is returned as empty has been taken over; anything else can be asked for again.
        """
        ...

    def end(self) -> None:
        """Put what completes the file into `backlog`; a second call adds nothing."""
        ...
