"""Decompresses a file's bytes step by step: compressed blocks in, blocks of bounded size out. Pure.

Whatever a few compressed bytes blow up to, no step makes more than it was asked for; and everything that comes before
a fault is handed out before the fault is raised, so that what is read doesn't depend on how it was cut into blocks.
"""

import zlib
from typing import Any

GZIP_MAGIC = b"\x1f\x8b"

_GZIP = 31
"""zlib's window bits for a gzip member with its header and checksum."""
_PIECE = 16 << 10
"""Compressed bytes given to zlib at once: it copies what it leaves of them, at the end of every member."""


class Corrupt(Exception):
    """Compressed data can't be read on. `offset` counts compressed bytes, `problem` says what is wrong there."""

    def __init__(self, offset: int, problem: str) -> None:
        self.offset, self.problem = offset, problem
        super().__init__(f"{problem} at compressed byte {offset}")


class Gunzip:
    """One gzip file of any number of members, zero padding after them included."""

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
        """Tell whether nothing more can be made of what was given."""
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
        if self._fault is not None and not any(parts):
            raise self._fault
        return b"".join(parts)

    def end(self) -> None:
        """Learn that there is no more input. Raises Corrupt when a member isn't complete."""
        if self._member is not None:
            raise Corrupt(self.offset, "the gzip data ends too early")

    def _skip_padding(self) -> None:
        rest = memoryview(self._input)[self._at : self._at + _PIECE]
        while len(rest) and not any(rest):
            self._at += len(rest)
            rest = memoryview(self._input)[self._at : self._at + _PIECE]
        self._at += len(rest) - len(bytes(rest).lstrip(b"\0"))

    def _step(self, size: int) -> bytes:
        if self._member is None:
            self._member = zlib.decompressobj(_GZIP)
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
        self._has_more_output = len(part) == size and not member.eof
        if member.eof:
            self._member = None
            self._members += 1
        return part

    def _up_to_the_fault(self, stop: int, size: int) -> bytes:
        """Go on a byte at a time, since zlib gives nothing of a call that fails."""
        parts: list[bytes] = []
        try:
            while len(parts) < size and (self._at < stop or self._has_more_output):
                parts.append(self._decompress(self._input[self._at : self._at + 1], 1))
        except zlib.error as error:
            self._fault = Corrupt(self.offset, f"the gzip data is corrupt ({_reason(error)})")
        return b"".join(parts)


def _reason(error: zlib.error) -> str:
    """Return zlib's own words out of `Error -3 while decompressing data: incorrect data check`."""
    return str(error).rpartition(": ")[2]
