"""How payloads lie in an output file: as they are, compressed, as one Arrow stream, as Parquet. Pure.

A container can be tried again: it gives what belongs into the file, and only counts it as there when it is told so.
"""

from __future__ import annotations

import gzip
from typing import Any, Literal, Protocol

Compression = Literal["none", "gzip", "zstd"]
Format = Literal["jsonl", "csv", "arrow", "parquet"]

GZIP_LEVEL = 1
"""Higher ones make score lines a tenth smaller at a fifth of the speed."""
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


def container_for(format: Format, compression: Compression, header: bytes) -> Container:
    """Return the layout for a sink's format. header: what a fresh file starts with, where the format is text."""
    if format == "arrow":
        from streambatch.sinks.tables import ArrowStream

        return ArrowStream(compression)
    if format == "parquet":
        from streambatch.sinks.tables import ParquetFile

        return ParquetFile(compression)
    return Text(compression, header)


class Text:
    """Lines or rows after a header. Compressed, each payload is a gzip member or zstd frame of its own, so that a file
    can be cut wherever a payload ended."""

    is_whole_only = is_ended = False
    held = 0

    def __init__(self, compression: Compression, header: bytes) -> None:
        self.backlog = b""
        self.is_quick = compression == "none"
        self._compression, self._header = compression, header
        self._zstd: Any = None

    def begin(self) -> None:
        self.backlog = b""

    def resume(self, head: bytes) -> None:
        """Need nothing of it."""

    def add(self, payload: bytes, *, is_first: bool) -> bytes:
        text = self._header + payload if is_first and self._header else payload
        if self._compression == "none" or not text:
            return text
        return gzip.compress(text, GZIP_LEVEL, mtime=0) if self._compression == "gzip" else self._framed(text)

    def end(self) -> None:
        """Add nothing: every payload is complete."""

    def _framed(self, text: bytes) -> bytes:
        if self._zstd is None:
            import pyarrow as pa

            self._zstd = pa.Codec("zstd", 1)
        frame: bytes = self._zstd.compress(text, asbytes=True)
        return frame
