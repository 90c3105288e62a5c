"""Records of CSV: they end with a newline that is not inside quotes. The first one of a partition names the columns.

The meaning of a quote is that of RFC 4180, and elsewhere that of Python's csv module: a quote that does not open a
field is an ordinary character, and so is all that follows a closing one up to the next comma or newline. A lone \\r
ends nothing. Blocks whose quotes all stand where RFC 4180 puts them are framed by counting quotes; others, and only
they, by a regular expression. Both look at new bytes only: what a block means depends on one state at its start.
"""

from __future__ import annotations

import re
from typing import Literal

import numpy as np

from streambatch.codecs.text.lines import LinesFramer, LinesFraming, newlines, stripped
from streambatch.core.chunks import Chunk
from streambatch.core.codec import Framer, FramerStart
from streambatch.core.types import BoolArray, IntArray

State = Literal["field_start", "unquoted", "quoted", "quote_seen"]
"""Where in a field a block starts; `quote_seen`: after a quote that closes the field or is the first of a pair."""

_BOM = b"\xef\xbb\xbf"
_NEWLINE, _QUOTE, _COMMA = b'\n",'

# All repeats are possessive (`*+`): they never backtrack, so that no input costs more than its length warrants.
_REST_OF_UNQUOTED = re.compile(rb"[^,\n]*+")
_REST_OF_QUOTED = re.compile(rb'[^"]*+(?:""[^"]*+)*+"(?=[^"])')
_RECORD = re.compile(
    rb"""(?: , | [^",\n][^,\n]*+ | "[^"]*+(?:""[^"]*+)*+"(?=[^"])[^,\n]*+ )*+
         (?: \n | ([\s\S]*+) )""",
    re.VERBOSE,
)
"""A record; or what there is of one, with the field whose end is unknown as its group."""


_FIELD = re.compile(r'(?:"([^"]*+(?:""[^"]*+)*+)"|((?!")[^,\r\n]*+))(?=,|\Z)')
_CLOSED = re.compile(r'"[^"]*+(?:""[^"]*+)*+"')


class CsvFraming(LinesFraming):
    """CSV with a header, comma-separated; a UTF-8 byte order mark before it is passed over; blank lines are no records.

    A quoted field that never closes ends its record as oversize, at the first newline past `max_record_bytes`: one
    bad quote does not eat the rest of a stream. To start in mid-stream takes the columns.
    """

    name = "csv"
    has_header = True

    def framer_from(self, start: FramerStart) -> Framer:
        return CsvFramer(start)


class CsvFramer(LinesFramer):
    """Finds CSV records in the blocks of one partition; see `Framer`.

    columns: the header's names, None until it was read; empty if it was no readable header.
    """

    def __init__(self, start: FramerStart) -> None:
        if start.position and start.columns is None:
            raise ValueError(f"{start.partition}: the columns are needed to read CSV from byte {start.position} on")
        super().__init__(start)
        self._state: State = "field_start"
        # A byte order mark can only stand at the very start of a partition.
        self._opening: bytes | None = None if start.position else b""

    def feed(self, block: bytes, now: float) -> list[Chunk]:
        """Return the records that `block` completes."""
        if self._opening is not None:
            block = self._without_mark(block)
        chunks = super().feed(block, now)
        self.pending += len(self._opening or b"")
        return chunks

    def end(self, now: float, *, cut_off: bool = False) -> list[Chunk]:
        """Return the unterminated last record, if there is one; a header that was cut off is no record."""
        if self._opening:
            # The whole partition is shorter than a mark, and looked like the start of one.
            opening, self._opening = self._opening, None
            super().feed(opening, now)
        chunks = super().end(now, cut_off=cut_off)
        self._resynchronised()
        return chunks

    def _without_mark(self, block: bytes) -> bytes:
        """Return the first bytes of the partition without a byte order mark; nothing while they are too few."""
        opening = (self._opening or b"") + block
        if len(opening) < len(_BOM) and _BOM.startswith(opening):
            self._opening = opening
            return b""
        self._opening = None
        if opening.startswith(_BOM):
            # Positions count the bytes of the file, those of the mark included.
            self._start += len(_BOM)
        return opening.removeprefix(_BOM)

    def _put(self, payload: bytes, ends: IntArray, base: int, now: float, chunks: list[Chunk]) -> None:
        if self.columns is not None:
            return super()._put(payload, ends, base, now, chunks)
        self.columns = _names(payload[: int(ends[0])])
        if len(ends) > 1:
            chunk = self._chunk(payload, ends, base, now)
            # The header is no record: it is taken off, and positions go on behind it.
            chunk.split_off(1)
            chunks.append(chunk)

    def _put_oversize(self, head: bytes, size: int, position: int, now: float, chunks: list[Chunk]) -> None:
        if self.columns is None:
            # Too long to be read: no column has a name then, and every record becomes a reject that says so.
            self.columns = ()
        super()._put_oversize(head, size, position, now, chunks)

    def _put_cut_off(self, record: bytes, position: int, now: float, chunks: list[Chunk]) -> None:
        if self.columns is not None:
            super()._put_cut_off(record, position, now, chunks)

    def _resynchronised(self) -> None:
        self._state = "field_start"

    def _boundaries(self, block: bytes) -> IntArray:
        if b'"' not in block:
            # Without a quote nothing can end a quoted field; after a quote that was seen last, the field turns out to
            # be closed.
            if self._state == "quoted":
                return np.empty(0, np.int64)
            self._state = _state_after(block)
            return newlines(block)
        ends = self._by_parity(block)
        # The scan is right for any bytes, and slower: it runs only where quotes stand in odd places.
        return self._by_scan(block) if ends is None else ends

    def _by_parity(self, block: bytes) -> IntArray | None:
        """Return where records end if every quote opens, closes or is doubled as it should; otherwise None."""
        codes = np.frombuffer(block, np.uint8)
        quotes = np.flatnonzero(codes == _QUOTE)
        is_open = self._state == "quoted"
        # Quotes take turns, if all are as they should be; a doubled one closes and opens again.
        opening, closing = quotes[int(is_open) :: 2], quotes[int(not is_open) :: 2]
        if len(opening) and opening[0] == 0:
            # A quote within an unquoted field is an ordinary character, and opens nothing.
            if self._state == "unquoted":
                return None
            opening = opening[1:]
        # The byte after it is in the next block: the state `quote_seen` stands for that.
        if len(closing) and closing[-1] == len(block) - 1:
            closing = closing[:-1]
        if not (_MAY_PRECEDE[codes[opening - 1]].all() and _MAY_FOLLOW[codes[closing + 1]].all()):
            return None
        ends = newlines(block)
        # An odd number of quotes before a newline means that it is inside of some.
        is_inside = (np.searchsorted(quotes, ends) + is_open) & 1
        if (len(quotes) + is_open) & 1:
            self._state = "quoted"
        else:
            self._state = "quote_seen" if block[-1] == _QUOTE else _state_after(block)
        outside: IntArray = ends[is_inside == 0]
        return outside

    def _by_scan(self, block: bytes) -> IntArray:
        """Return where records end, and keep the state after the block."""
        at = self._finish_field(block)
        if at is None:
            return np.empty(0, np.int64)
        ends = []
        while (match := _RECORD.match(block, at)) and match[1] is None:
            at = match.end()
            ends.append(at)
        unfinished = match[1] if match else b""
        if unfinished:
            self._state = "quoted" if unfinished.count(b'"') & 1 else "quote_seen"
        else:
            self._state = _state_after(block)
        return np.array(ends, np.int64)

    def _finish_field(self, block: bytes) -> int | None:
        """Return where the open field ends in `block`; None, with the state kept, if `block` is too short to see it."""
        at, state = 0, self._state
        if state == "quote_seen":
            at, state = (1, "quoted") if block[0] == _QUOTE else (0, "unquoted")
        if state == "quoted":
            match = _REST_OF_QUOTED.match(block, at)
            if match is None:
                self._state = "quote_seen" if block.count(b'"', at) & 1 else "quoted"
                return None
            at, state = match.end(), "unquoted"
        if state == "unquoted" and (match := _REST_OF_UNQUOTED.match(block, at)):
            at = match.end()
        return at


def _table(allowed: bytes) -> BoolArray:
    table = np.zeros(256, np.bool_)
    table[list(allowed)] = True
    return table


_MAY_PRECEDE = _table(b',\n"')
"""Bytes that stand before a quote that opens a field; a quote there has just closed, so that the two are one pair."""
_MAY_FOLLOW = _table(b',\n\r"')


def _state_after(block: bytes) -> State:
    """Return the state after a block that ends outside quotes, with no quote last."""
    return "field_start" if block[-1] in (_COMMA, _NEWLINE) else "unquoted"


def fields_of(record: str) -> list[str]:
    """Return the fields of a CSV record without its line ending. Raises ValueError with the reason."""
    if '"' not in record and "\r" not in record:
        return record.split(",")
    fields: list[str] = []
    at = 0
    while True:
        match = _FIELD.match(record, at)
        if match is None:
            raise ValueError(_malformed(record, at, len(fields) + 1))
        quoted, plain = match.groups()
        fields.append(plain if quoted is None else quoted.replace('""', '"'))
        at = match.end() + 1
        if at > len(record):
            return fields


def _malformed(record: str, at: int, field: int) -> str:
    if not record.startswith('"', at):
        return f"expected no carriage return outside quotes, found one in field {field}"
    if _CLOSED.match(record, at):
        return f"expected a comma after the closing quote of field {field}, found more text"
    return f"expected a closing quote in field {field}, found the end of the record"


def _names(header: bytes) -> tuple[str, ...]:
    """Return the names in a header, none if it is malformed; bytes that are not UTF-8 are replaced, and so match no
    name."""
    try:
        return tuple(fields_of(stripped(header).decode(errors="replace")))
    except ValueError:
        return ()
