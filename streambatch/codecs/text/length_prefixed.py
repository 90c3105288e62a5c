"""Records that follow their length: four bytes, big-endian, then so many bytes.

A record over `max_record_bytes` is skipped, and only its first bytes are kept. A
record that is still incomplete is joined once, when its last byte is there.
"""

from __future__ import annotations

from struct import Struct

import numpy as np

from streambatch.codecs.framer import PartitionFramer
from streambatch.core.chunks import KEPT_OF_OVERSIZE, Chunk, Fault
from streambatch.core.codec import Framer, FramerStart, Framing

_LENGTH = Struct(">I")


class LengthPrefixedFraming(Framing):
    """A record is its length as an unsigned 32-bit big-endian integer, then its bytes; there may be none."""

    name = "length_prefixed"

    def framer_from(self, start: FramerStart) -> Framer:
        return LengthPrefixedFramer(start)

    def strip(self, raw: memoryview) -> bytes:
        """Return a record without its length."""
        return bytes(raw[_LENGTH.size :])


class LengthPrefixedFramer(PartitionFramer):
    """Finds records in the blocks of one partition; see `Framer`."""

    def __init__(self, start: FramerStart) -> None:
        super().__init__(start)
        self._read_to = start.position
        self._tail = bytearray()
        self._wanted = _LENGTH.size
        self._oversize_bytes = 0
        self._passed = 0

    def feed(self, block: bytes, now: float) -> list[Chunk]:
        """Return the records that `block` completes; it is not changed, and kept if it holds whole records only."""
        chunks: list[Chunk] = []
        self._read_to += len(block)
        if self._oversize_bytes:
            self._frame(block, self._pass_over(block, 0, chunks, now), chunks, now)
        # Appended without a look: joining at each block would copy a large record again and again.
        elif len(self._tail) + len(block) < self._wanted:
            self._tail += block
        else:
            self._frame(b"".join((self._tail, block)) if self._tail else block, 0, chunks, now)
        self.pending = len(self._tail)
        return chunks

    def end(self, now: float, *, cut_off: bool = False) -> list[Chunk]:
        """Return the last record if it is not complete: it has been cut off, whatever `cut_off` says."""
        chunks = []
        if self._oversize_bytes:
            chunks.append(self._end_of_oversize(self._read_to, now))
        elif len(self._tail) >= _LENGTH.size:
            wanted, found = self._wanted - _LENGTH.size, len(self._tail) - _LENGTH.size
            error = f"record: expected {wanted} bytes, found the input cut off after {found}"
            chunks.append(self._dead(bytes(self._tail[_LENGTH.size :]), self._read_to, Fault("cut_off", error), now))
        elif self._tail:
            error = (
                f"record: expected a length of {_LENGTH.size} bytes, found the input cut off after {len(self._tail)}"
            )
            chunks.append(self._dead(bytes(self._tail), self._read_to, Fault("cut_off", error), now))
        self._tail, self._wanted, self.pending = bytearray(), _LENGTH.size, 0
        return chunks

    def _frame(self, data: bytes, at: int, chunks: list[Chunk], now: float) -> None:
        """Frame the last bytes read, from `at` on."""
        while at < len(data):
            ends, stop = self._whole(data, at)
            if ends:
                # The usual case, a block of whole records, is not copied.
                payload = data if stop - at == len(data) else data[at:stop]
                base = self._read_to - len(data) + at
                chunks.append(self._chunk(payload, np.array(ends, np.int64), base, now))
            left = len(data) - stop
            length = _LENGTH.unpack_from(data, stop)[0] if left >= _LENGTH.size else 0
            if length <= self.max_record_bytes:
                self._tail, self._wanted = bytearray(data[stop:]), _LENGTH.size + length
                return
            # The length is trusted, however large: it is the only way to find the next record.
            self._tail, self._oversize_bytes, self._passed = bytearray(), length, 0
            at = self._pass_over(data, stop + _LENGTH.size, chunks, now)

    def _whole(self, data: bytes, start: int) -> tuple[list[int], int]:
        """Return where the records from `start` on end, relative to it, and where the first that is not whole, or
        oversize, starts."""
        unpack, prefix, size_max = _LENGTH.unpack_from, _LENGTH.size, self.max_record_bytes
        ends, at, last = [], start, len(data) - prefix
        while at <= last:
            (size,) = unpack(data, at)
            end = at + prefix + size
            if size > size_max or end > len(data):
                break
            ends.append(end - start)
            at = end
        return ends, at

    def _pass_over(self, data: bytes, at: int, chunks: list[Chunk], now: float) -> int:
        """Pass over the bytes of an oversize record from `at` on. Returns where they end in `data`."""
        stop = min(len(data), at + self._oversize_bytes - self._passed)
        self._tail += data[at : min(stop, at + KEPT_OF_OVERSIZE - len(self._tail))]
        self._passed += stop - at
        if self._passed == self._oversize_bytes:
            chunks.append(self._end_of_oversize(self._read_to - len(data) + stop, now))
        return stop

    def _end_of_oversize(self, position: int, now: float) -> Chunk:
        chunk = self._oversize(bytes(self._tail), self._oversize_bytes, position, now, received=self._passed)
        self._tail, self._wanted, self._oversize_bytes = bytearray(), _LENGTH.size, 0
        return chunk
