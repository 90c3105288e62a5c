"""Output files of text: lines or rows after a header, as they are or compressed."""

from __future__ import annotations

import gzip
from typing import Any

from streambatch.codecs.containers import Compression

GZIP_LEVEL = 1
"""Higher ones make score lines a tenth smaller at a fifth of the speed."""


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
        # Without the time, the same scores give the same bytes in every run.
        return gzip.compress(text, GZIP_LEVEL, mtime=0) if self._compression == "gzip" else self._framed(text)

    def end(self) -> None:
        """Add nothing: every payload is complete."""

    def _framed(self, text: bytes) -> bytes:
        if self._zstd is None:
            import pyarrow as pa

            self._zstd = pa.Codec("zstd", 1)
        frame: bytes = self._zstd.compress(text, asbytes=True)
        return frame
