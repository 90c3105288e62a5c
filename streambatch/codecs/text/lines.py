"""Records that end with a newline.

Boundaries are found a block at a time. A record that is not complete waits in a buffer that is searched once, however
small the blocks are, and that holds at most `max_record_bytes`, or the kept bytes of an oversize record, and a block.
Every chunk of whole records ends with a newline, so that chunks can be joined; an unterminated last record is given
one.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from streambatch.codecs.framer import PartitionFramer
from streambatch.core.chunks import (
    KEPT_OF_OVERSIZE,
    Chunk,
    Fault,
)
from streambatch.core.codec import Framer, FramerStart, Framing
from streambatch.core.types import IntArray
from streambatch.core.units import format_size

_NEWLINE, _RETURN = 10, 13
_SMALL_BYTES = 1 << 10
"""Below this a loop over `find` costs less than three calls of numpy."""
_PIECE_BYTES = 64 << 10
"""What is left of a block after an oversize record is framed in pieces, so that a rescan costs no more than one."""


class BlankLinesChunk(Chunk):
    """A chunk of which some records have blank lines before them, which belong to none."""

    __slots__ = ()

    @classmethod
    def of(cls, chunk: Chunk) -> BlankLinesChunk:
        """Return a chunk of the same records, of which none was split off."""
        return cls(
            chunk.partition, chunk.payload, chunk.ends, chunk.base, chunk.arrived_at,
            columns=chunk.columns, origin=chunk.origin,
        )  # fmt: skip

    def digest_span(self) -> tuple[Any, int, int]:
        """Return the records without the blank lines: where a block was cut decides which of those are in a chunk."""
        records = b"".join([_without_blank_lines(bytes(self.raw(index))) for index in range(self.count)])
        return records, 0, len(records)


class LinesFraming(Framing):
    """A record ends with \\n or \\r\\n; lines without anything else are no records. A lone \\r ends nothing."""

    name = "lines"

    def framer_from(self, start: FramerStart) -> Framer:
        return LinesFramer(start)

    def strip(self, raw: memoryview) -> bytes:
        """Return a record without its ending and without the blank lines before it."""
        return stripped(bytes(raw))


class LinesFramer(PartitionFramer):
    """Finds lines in the blocks of one partition; see `Framer`."""

    def __init__(self, start: FramerStart) -> None:
        super().__init__(start)
        self._start = start.position
        self._tail = bytearray()
        self._tail_bytes_max = max(start.max_record_bytes, KEPT_OF_OVERSIZE) + 1
        self._skipped = 0
        self._skipped_last = 0
        self._has_blank_lines = False

    def feed(self, block: bytes, now: float) -> list[Chunk]:
        """Return the records that `block` completes; it is not changed, and kept if it holds whole records only."""
        chunks: list[Chunk] = []
        todo = [block] if block else []
        while todo:
            piece = todo.pop()
            rest = self._skip(piece, now, chunks) if self._skipped else self._frame(piece, now, chunks)
            if rest:
                todo += [rest[at : at + _PIECE_BYTES] for at in range(0, len(rest), _PIECE_BYTES)][::-1]
        self.pending = len(self._tail)
        return chunks

    def end(self, now: float, *, cut_off: bool = False) -> list[Chunk]:
        """Return the unterminated last record, if there is one."""
        chunks: list[Chunk] = []
        size, ended = len(self._tail) + self._skipped, self._start + len(self._tail) + self._skipped
        # A \r at the very end may be half of a line ending, and doesn't count.
        last = self._skipped_last if self._skipped else self._tail[-1] if self._tail else 0
        size -= last == _RETURN
        if size > self.max_record_bytes:
            self._put_oversize(bytes(self._tail[:size]), size, ended, now, chunks)
        elif size and cut_off:
            self._put_cut_off(bytes(self._tail[:size]), ended, now, chunks)
        elif size:
            payload = bytes(self._tail) + b"\n"
            self._put(payload, np.array([len(payload)], np.int64), ended - len(payload), now, chunks)
        self._restart(ended)
        self.pending = 0
        return chunks

    def _boundaries(self, block: bytes) -> IntArray:
        """Return where records end in a block that follows all that was held before."""
        return newlines(block)

    def _resynchronised(self) -> None:
        """Start over: the next byte starts a record, whatever came before."""

    def _chunk(self, payload: bytes, ends: IntArray, base: int, now: float) -> Chunk:
        chunk = super()._chunk(payload, ends, base, now)
        return BlankLinesChunk.of(chunk) if self._has_blank_lines else chunk

    def _put(self, payload: bytes, ends: IntArray, base: int, now: float, chunks: list[Chunk]) -> None:
        chunks.append(self._chunk(payload, ends, base, now))

    def _put_oversize(self, head: bytes, size: int, position: int, now: float, chunks: list[Chunk]) -> None:
        chunks.append(self._oversize(head, size, position, now))

    def _put_cut_off(self, record: bytes, position: int, now: float, chunks: list[Chunk]) -> None:
        error = f"record: expected a line ending, found the input cut off after {format_size(len(record))}"
        chunks.append(self._dead(record, position, Fault("cut_off", error), now))

    def _frame(self, block: bytes, now: float, chunks: list[Chunk]) -> bytes:
        """Frame a block that follows the tail. Returns the bytes to frame again, after a record was ended by force."""
        ends = self._boundaries(block)
        if not len(ends):
            return self._hold(block, now, chunks)
        cut, held = int(ends[-1]), len(self._tail)
        if held:
            ends += held
            payload = b"".join((self._tail, memoryview(block)[:cut]))
        else:
            payload = block[:cut]
        used = len(payload)
        if self._is_plain(ends):
            self._put(payload, ends, self._start, now, chunks)
        else:
            used = self._put_runs(payload, ends, now, chunks)
        self._restart(self._start + used)
        # Behind a record that was ended by force, the boundaries found before don't hold: quotes may have another
        # meaning.
        if used < len(payload):
            self._resynchronised()
            return payload[used:] + block[cut:]
        return self._hold(block[cut:], now, chunks) if cut < len(block) else b""

    def _is_plain(self, ends: IntArray) -> bool:
        """Whether surely no line is blank and none oversize."""
        longest_max = self.max_record_bytes + 1
        if len(ends) == 1:
            # Lines of one or two bytes may be blank: \n or \r\n.
            return 2 < int(ends[0]) <= longest_max
        sizes = ends.copy()
        sizes[1:] -= ends[:-1]
        return bool(sizes.min() > 2 and sizes.max() <= longest_max)

    def _put_runs(self, payload: bytes, ends: IntArray, now: float, chunks: list[Chunk]) -> int:
        """Put lines without the blank ones, and each oversize one alone.

        Returns how many bytes are done: all, or those up to where an oversize record was ended by force.
        """
        starts = np.concatenate((np.zeros(1, np.int64), ends[:-1]))
        sizes = ends - starts - 1
        # Only where there is something before the newline: else the byte looked at is of the line before.
        sizes -= (sizes > 0) & (np.frombuffer(payload, np.uint8)[ends - 2] == _RETURN)
        done = 0
        for at in np.flatnonzero(sizes > self.max_record_bytes).tolist():
            start, end = int(starts[at]), int(ends[at])
            self._put_run(payload, starts[done:at], ends[done:at], sizes[done:at], now, chunks)
            forced = self._forced_end(payload, start, start)
            size = int(sizes[at]) if forced == end else _content_bytes(payload, start, forced)
            self._put_oversize(payload[start : start + size], size, self._start + forced, now, chunks)
            if forced < end:
                return forced
            done = at + 1
        self._put_run(payload, starts[done:], ends[done:], sizes[done:], now, chunks)
        return len(payload)

    def _put_run(
        self, payload: bytes, starts: IntArray, ends: IntArray, sizes: IntArray, now: float, chunks: list[Chunk]
    ) -> None:
        kept = ends[sizes > 0]
        if len(kept):
            start, end = int(starts[0]), int(kept[-1])
            self._has_blank_lines = len(kept) < len(ends)
            self._put(payload[start:end], kept - start, self._start + start, now, chunks)
            self._has_blank_lines = False

    def _forced_end(self, data: bytes | bytearray, start: int, searched: int) -> int:
        """Return where an oversize record that starts at `start` ends at the latest: after the first newline past the
        limit; 0 if there is none from `searched` on."""
        first = start + self.max_record_bytes + 1
        at = data.find(b"\n", max(first, searched))
        # Without its \r, a record that ends here would be just within the limit.
        if at == first and data[at - 1] == _RETURN:
            at = data.find(b"\n", at + 1)
        return at + 1

    def _hold(self, block: bytes, now: float, chunks: list[Chunk]) -> bytes:
        """Keep a block that ends no record. Returns the bytes after a record that it ends by force."""
        tail, held = self._tail, len(self._tail)
        tail += block
        # One more, for the \r that the ending may have.
        if len(tail) <= self.max_record_bytes + 1:
            return b""
        end = self._forced_end(tail, 0, held)
        if end:
            size = _content_bytes(tail, 0, end)
            rest = bytes(memoryview(tail)[end:])
            kept = bytes(memoryview(tail)[: min(size, KEPT_OF_OVERSIZE)])
            self._put_oversize(kept, size, self._start + end, now, chunks)
            self._restart(self._start + end)
            self._resynchronised()
            return rest
        if len(tail) > self._tail_bytes_max:
            # The last byte is kept: if it is a \r and the next block starts with \n, it is of the ending.
            self._skipped, self._skipped_last = len(tail) - KEPT_OF_OVERSIZE, tail[-1]
            del tail[KEPT_OF_OVERSIZE:]
        return b""

    def _skip(self, block: bytes, now: float, chunks: list[Chunk]) -> bytes:
        """Skip the rest of an oversize record. Returns the bytes after it."""
        at = block.find(b"\n")
        if at < 0:
            self._skipped += len(block)
            self._skipped_last = block[-1]
            return b""
        last = block[at - 1] if at else self._skipped_last
        size = len(self._tail) + self._skipped + at - (last == _RETURN)
        ended = self._start + len(self._tail) + self._skipped + at + 1
        self._put_oversize(bytes(self._tail), size, ended, now, chunks)
        self._restart(ended)
        self._resynchronised()
        return block[at + 1 :]

    def _restart(self, start: int) -> None:
        """Hold nothing; the next byte is at `start`."""
        self._start, self._skipped = start, 0
        if self._tail:
            self._tail = bytearray()


def stripped(record: bytes) -> bytes:
    """Return a record without its ending and without the blank lines before it."""
    if record.endswith(b"\n"):
        record = record[:-2] if record.endswith(b"\r\n") else record[:-1]
    return _without_blank_lines(record)


def _without_blank_lines(record: bytes) -> bytes:
    while record.startswith((b"\n", b"\r\n")):
        record = record[record.index(b"\n") + 1 :]
    return record


def newlines(block: bytes) -> IntArray:
    """Return the offsets after each newline in `block`."""
    if len(block) > _SMALL_BYTES:
        ends = np.flatnonzero(np.frombuffer(block, np.uint8) == _NEWLINE)
        ends += 1
        return ends
    found = []
    at = block.find(b"\n") + 1
    while at:
        found.append(at)
        at = block.find(b"\n", at) + 1
    return np.array(found, np.int64)


def _content_bytes(data: bytes | bytearray, start: int, end: int) -> int:
    """Return the length of the line from `start` to `end` without its ending."""
    return end - start - (2 if data[end - 2] == _RETURN else 1)
