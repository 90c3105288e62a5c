"""Unpacks a request's body, block by block, within limits.

No step returns more than a piece of bounded size, however little a client sends. A body that unpacks to more than it
may is refused while it is unpacked.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

from streambatch.codecs.compression import Gunzip, Unpacker, Unzstd
from streambatch.core.units import format_size

PIECE_BYTES = 64 << 10
RATIO_MAX = 200
"""How many times its packed size a body may unpack to. JSON lines that hardly differ come to 50."""
RATIO_COUNTS_FROM = 1 << 20
"""Unpacked bytes up to which any ratio will do."""
ZSTD_WINDOW_BYTES = 8 << 20
"""The most that a sender may ask for in a body of content encoding zstd (RFC 9659)."""


class TooLarge(Exception):
    """A body holds more than it may."""


class _SmallUnzstd(Unzstd):
    """zstd with the window that every decoder must have, and not the 128 MiB that a frame may ask for."""

    def _new_member(self) -> Any:
        return self._zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW_BYTES).decompressobj()


DECOMPRESSORS: dict[str, type[Unpacker]] = {"gzip": Gunzip, "x-gzip": Gunzip}
"""By content encoding; zstd takes the package zstandard."""
if find_spec("zstandard") is not None:
    DECOMPRESSORS["zstd"] = _SmallUnzstd


class Unpacking:
    """The body of one request. Give every block to `pieces`, then call `end`.

    encoding: a key of DECOMPRESSORS, or `identity`. size_max: bytes that the body may have, unpacked.
    """

    def __init__(self, encoding: str, size_max: int) -> None:
        self._decompressor = None if encoding == "identity" else DECOMPRESSORS[encoding]()
        self._size_max = size_max
        self._packed = self._unpacked = 0

    def pieces(self, block: bytes) -> Iterator[bytes]:
        """Yield the unpacked pieces of a block. Raises TooLarge and Corrupt after all that comes before the fault."""
        self._packed += len(block)
        if self._decompressor is None:
            yield self._checked(block)
            return
        self._decompressor.give(block)
        while not self._decompressor.needs_input():
            yield self._checked(self._decompressor.inflate(PIECE_BYTES))

    def end(self) -> None:
        """End the body. Raises Corrupt when it is cut off."""
        if self._decompressor is not None:
            self._decompressor.end()

    def _checked(self, piece: bytes) -> bytes:
        self._unpacked += len(piece)
        if self._unpacked > self._size_max:
            raise TooLarge(f"the body has more than {format_size(self._size_max)}")
        # 1 GiB of zeros is 1 MiB of gzip: by its size alone, the largest body would cost a sender next to nothing.
        if self._unpacked > max(RATIO_COUNTS_FROM, RATIO_MAX * self._packed):
            raise TooLarge(f"the body unpacks to more than {RATIO_MAX} times its size")
        return piece
