"""Decompresses a file's bytes step by step: compressed blocks in, blocks of bounded size out. Pure.

No step returns more than it was asked for, however large a few compressed bytes unpack to. Everything before a fault is
returned before the fault is raised, so that the result doesn't depend on how the input was cut into blocks.
"""

import bz2
import lzma
import zlib
from abc import ABC, abstractmethod
from typing import Any, ClassVar, Literal

from streambatch.core.errors import OptionError

Compression = Literal["none", "gzip", "zstd", "xz", "bz2"]

_GZIP = 31
"""zlib's window bits for a gzip member with its header and checksum."""
_PIECE = 16 << 10
"""Compressed bytes given to zlib at once: it copies what it leaves of them, at the end of every member."""
_SMALL_PIECE = 512
"""Compressed bytes given at once to the others, which give nothing of a call that fails. It is also what bounds zstd,
which can't be told how much to give: 128 KiB for each 4 bytes of it, at worst."""
_STEP = 64 << 10
"""Bytes asked of xz and bz2 at once."""
_XZ_MEMORY = 128 << 20
"""Memory that an xz file may ask for: twice as much as files of `xz -9` do."""


class Corrupt(Exception):
    """Compressed data is damaged. `offset` counts compressed bytes; `problem` describes the damage there."""

    def __init__(self, offset: int, problem: str) -> None:
        self.offset, self.problem = offset, problem
        super().__init__(f"{problem} at compressed byte {offset}")


class Unpacker(ABC):
    """One compressed file of any number of members, zero padding after them included."""

    name: ClassVar[str]

    def __init__(self) -> None:
        self._input = b""
        self._at = 0
        self._before = 0
        self._member: Any = None
        self._members = 0
        self._has_more_output = False
        self._fault: Corrupt | None = None

    @property
    def offset(self) -> int:
        """Compressed bytes taken in so far."""
        return self._before + self._at

    def needs_input(self) -> bool:
        """Whether `inflate` would return nothing until more is given."""
        if self._member is None and self._members:
            self._skip_padding()
        return self._at == len(self._input) and not self._has_more_output and self._fault is None

    def give(self, block: bytes) -> None:
        """Add compressed bytes."""
        self._before += self._at
        self._input, self._at = self._input[self._at :] + block, 0

    def inflate(self, size: int) -> bytes:
        """Return up to `size` bytes, fewer when more input is needed. Raises Corrupt once all before it was."""
        parts: list[bytes] = []
        missing = size
        while missing > 0 and self._fault is None and not self.needs_input():
            part = self._step(missing)
            parts.append(part)
            missing -= len(part)
        # First the bytes before the fault are returned; the next call raises it.
        if self._fault is not None and not any(parts):
            raise self._fault
        return b"".join(parts)

    def end(self) -> None:
        """End the input. Raises Corrupt when a member isn't complete."""
        if self._member is not None:
            raise Corrupt(self.offset, f"the {self.name} data ends too early")

    @abstractmethod
    def _step(self, size: int) -> bytes:
        """Return up to `size` unpacked bytes; keep a fault for later."""

    def _skip_padding(self) -> None:
        # Piece by piece: of data that holds no padding, only the first piece is looked at.
        rest = memoryview(self._input)[self._at : self._at + _PIECE]
        while len(rest) and not any(rest):
            self._at += len(rest)
            rest = memoryview(self._input)[self._at : self._at + _PIECE]
        self._at += len(rest) - len(bytes(rest).lstrip(b"\0"))


class Gunzip(Unpacker):
    """gzip: what comes before a fault comes out to the last byte."""

    name = "gzip"

    def _step(self, size: int) -> bytes:
        if self._member is None:
            self._member = zlib.decompressobj(_GZIP)
        # A call that fails returns nothing. The bytes before the fault are then unpacked from this copy.
        before = self._member.copy()
        piece = self._input[self._at : self._at + _PIECE]
        try:
            return self._decompress(piece, size)
        except zlib.error:
            self._member = before
            return self._up_to_the_fault(self._at + len(piece), size)

    def _decompress(self, piece: bytes, size: int) -> bytes:
        member = self._member
        part: bytes = member.decompress(piece, size)
        # At its end a member may keep the same rest in both places.
        self._at += len(piece) - len(member.unused_data if member.eof else member.unconsumed_tail)
        # A part of the full size may leave more in the decompressor, which comes out without further input.
        self._has_more_output = len(part) == size and not member.eof
        if member.eof:
            self._member = None
            self._members += 1
        return part

    def _up_to_the_fault(self, stop: int, size: int) -> bytes:
        """Unpack a byte at a time: zlib returns nothing from a call that fails.

        What zlib has taken in is used up before it gets the next byte. So the fault lies at the byte that shows it,
        wherever the steps before this one ended.
        """
        parts: list[bytes] = []
        at = self.offset
        try:
            while len(parts) < size and (self._at < stop or self._has_more_output):
                at = self.offset - 1
                part = self._decompress(b"", 1)
                if not part:
                    at = self.offset
                    part = self._decompress(self._input[self._at : self._at + 1], 1)
                if part:
                    parts.append(part)
        except zlib.error as error:
            self._fault = Corrupt(at, f"the gzip data is corrupt ({_reason(error)})")
        return b"".join(parts)


class PiecewiseUnpacker(Unpacker):
    """A format whose decompressor returns nothing from a call that fails, so that it gets small pieces.

    The good bytes of a piece with a fault in it are lost. The fault's `offset` is where that piece starts.
    """

    def __init__(self) -> None:
        super().__init__()
        self._ready = memoryview(b"")

    def _step(self, size: int) -> bytes:
        if not self._ready and self._fault is None:
            self._ready = memoryview(self._next())
        part = bytes(self._ready[:size])
        self._ready = self._ready[size:]
        self._has_more_output = len(self._ready) > 0 or self._has_buffered()
        return part

    def _next(self) -> bytes:
        """Return all or a part of what the next piece unpacks to."""
        if self._member is None:
            self._member = self._new_member()
        # While xz and bz2 need no input, they hold output, and give it out when called with nothing.
        piece = b"" if self._has_buffered() else self._input[self._at : self._at + _SMALL_PIECE]
        try:
            out = self._decompress(piece)
        except (OSError, ValueError, EOFError, lzma.LZMAError, self._error()) as error:
            self._fault = Corrupt(self.offset, f"the {self.name} data is corrupt ({str(error).rpartition(': ')[2]})")
            return b""
        self._at += len(piece)
        if self._member.eof:
            # The bytes after its end are those of the next member.
            self._at -= len(self._member.unused_data)
            self._member = None
            self._members += 1
        return out

    @abstractmethod
    def _new_member(self) -> Any: ...

    def _decompress(self, piece: bytes) -> bytes:
        out: bytes = self._member.decompress(piece, _STEP)
        return out

    def _has_buffered(self) -> bool:
        return self._member is not None and not self._member.needs_input

    def _error(self) -> type[Exception]:
        return lzma.LZMAError


class Unxz(PiecewiseUnpacker):
    """xz, of any number of streams."""

    name = "xz"

    def _new_member(self) -> Any:
        return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY)


class Bunzip2(PiecewiseUnpacker):
    """bzip2, of any number of streams."""

    name = "bz2"

    def _new_member(self) -> Any:
        return bz2.BZ2Decompressor()


class Unzstd(PiecewiseUnpacker):
    """zstd, of any number of frames; needs the package zstandard."""

    name = "zstd"

    def __init__(self) -> None:
        """Raises OptionError when the package is not installed."""
        super().__init__()
        try:
            import zstandard
        except ImportError:
            raise OptionError(
                "compression", "zstd without its library", "zstd with pip install 'streambatch[zstd]'"
            ) from None
        self._zstandard = zstandard

    def _new_member(self) -> Any:
        return self._zstandard.ZstdDecompressor().decompressobj()

    def _decompress(self, piece: bytes) -> bytes:
        out: bytes = self._member.decompress(piece)
        return out

    def _has_buffered(self) -> bool:
        # zstandard gives out at once all that a piece unpacks to.
        return False

    def _error(self) -> type[Exception]:
        return self._zstandard.ZstdError


_UNPACKERS: dict[str, type[Unpacker]] = {each.name: each for each in (Gunzip, Unzstd, Unxz, Bunzip2)}


def unpacker(compression: str) -> Unpacker | None:
    """Return the unpacker for a compression; None for `none`."""
    return None if compression == "none" else _UNPACKERS[compression]()


def detect(head: bytes) -> Compression:
    """Return how a file is compressed, by its first bytes; 10 are enough."""
    if head.startswith(b"\x1f\x8b"):
        return "gzip"
    # The second one is a skippable frame (RFC 8878, 3.1.2): 0x184D2A50 to 0x184D2A5F, little-endian.
    if head.startswith(b"\x28\xb5\x2f\xfd") or (head[1:4] == b"\x2a\x4d\x18" and head[0] >> 4 == 5):
        return "zstd"
    if head.startswith(b"\xfd7zXZ\0"):
        return "xz"
    # BZh alone may be text. After the level, a block starts with the digits of pi; an empty file has those of its root.
    if head.startswith(b"BZh") and head[4:10] in (b"1AY&SY", b"\x17\x72\x45\x38\x50\x90"):
        return "bz2"
    return "none"


def compression_of(head: bytes, option: str) -> str:
    """Return the compression that an option stands for: `auto` is detected from the file's first bytes."""
    return detect(head) if option == "auto" else option


def _reason(error: zlib.error) -> str:
    """Return zlib's own words out of `Error -3 while decompressing data: incorrect data check`."""
    return str(error).rpartition(": ")[2]
