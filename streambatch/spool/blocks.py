"""How records lie in a spool: blocks in segments, and which of them count after a crash. Pure: bytes in, findings out.

A block is a header, information on its records, their ends, and their bytes. A position counts record bytes alone,
over all segments. What was written between two fsyncs is a group. After a crash any part of a group may be there, and
no sender was answered for it. So every block says how much of its segment was durable before its group: a torn end is
inside the last group, and anything before it that doesn't check out is damage. A request's blocks follow each other
and count only together with the last.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple
from zlib import crc32

import msgspec
import numpy as np

from streambatch.core.chunks import Chunk, Fault, Partition
from streambatch.core.types import IntArray

PARTITION = "spool"
"""The name of the one partition of a source with a spool."""
MAGIC = b"SBk1"
KEY_BYTES = 16

_MARK = struct.Struct("<4sI")
# The fields of BlockHeader after its offset, in their order; little-endian and without gaps on any machine.
_FACTS = struct.Struct("<IQQIIIdB")
HEADER_BYTES = _MARK.size + _FACTS.size
_ENDS = np.dtype("<u4")
_MORE = 1
_MERGED_BYTES = 256 << 10
_LOOKS_MAX = 256


class RequestKey(msgspec.Struct, frozen=True, array_like=True):
    """An idempotency key, hashed, with the hash and the number of its request's records."""

    key: bytes
    digest: bytes
    received: int


class BlockInfo(msgspec.Struct, frozen=True, array_like=True, omit_defaults=True):
    """Information on the records of a block besides their bytes and ends."""

    columns: tuple[str, ...] | None = None
    fault: Fault | None = None
    key: RequestKey | None = None


_NOTHING = BlockInfo()
_encoder, _decoder = msgspec.msgpack.Encoder(), msgspec.msgpack.Decoder(BlockInfo)


class NewBlock:
    """Records of one chunk on their way into a spool: a block that has no place yet."""

    __slots__ = ("arrived_at", "count", "info_bytes", "packed", "size")

    def __init__(self, packed: Sequence[bytes], info_bytes: int, count: int, size: int, arrived_at: float) -> None:
        self.packed = packed
        """Everything of the block but its header; nothing if it is staged in a file."""
        self.info_bytes, self.count, self.size = info_bytes, count, size
        self.arrived_at = arrived_at
        """Wall seconds."""

    @property
    def body_bytes(self) -> int:
        """Bytes of the block but its header."""
        return self.info_bytes + _ENDS.itemsize * self.count + self.size

    @property
    def block_bytes(self) -> int:
        return HEADER_BYTES + self.body_bytes


def block_of(chunk: Chunk, arrived_at: float) -> NewBlock:
    """Return a chunk's records, ready to be written."""
    # Counted from the block's first record, so that 4 bytes are enough.
    ends = (chunk.ends[chunk.first : chunk.last] - chunk.start).astype(_ENDS)
    # Most blocks have nothing to say of their records, and spend no bytes on it.
    plain = chunk.columns is None and chunk.fault is None
    about = b"" if plain else _encoder.encode(BlockInfo(chunk.columns, chunk.fault))
    packed = (about, ends.tobytes(), bytes(chunk.data()))
    return NewBlock(packed, len(about), chunk.count, chunk.size, arrived_at)


def key_block(key: RequestKey, arrived_at: float, *, is_alone: bool) -> NewBlock:
    """Return the block that ends a request with a key; it has no records of its own.

    is_alone: the request has no records at all. A byte then sees to it that every request has its own position.
    """
    about = _encoder.encode(BlockInfo(key=key))
    body = b"\n" if is_alone else b""
    return NewBlock((about, body), len(about), 0, len(body), arrived_at)


def pack_header(block: NewBlock, packed: Sequence[bytes], *, position: int, synced: int, more: bool) -> bytes:
    """Return the header of a block whose records begin at `position`.

    synced: bytes of the segment that were durable before the block's group. more: its request goes on in the next.
    """
    flags = _MORE if more else 0
    facts = _FACTS.pack(
        block.body_bytes, position, synced, block.count, block.size, block.info_bytes, block.arrived_at, flags
    )
    # One checksum over header and content: neither passes with the other of another block.
    crc = crc32(facts)
    for piece in packed:
        crc = crc32(piece, crc)
    return _MARK.pack(MAGIC, crc) + facts


class BlockHeader(NamedTuple):
    """A block that is whole: its offset, and the fields of its header."""

    offset: int
    body_bytes: int
    position: int
    synced: int
    records: int
    size: int
    info_bytes: int
    arrived_at: float
    flags: int

    @property
    def more(self) -> bool:
        return bool(self.flags & _MORE)

    @property
    def next_offset(self) -> int:
        return self.offset + HEADER_BYTES + self.body_bytes

    @property
    def end(self) -> int:
        """Where its records end."""
        return self.position + self.size


def block_bytes(data: memoryview, offset: int) -> int | None:
    """Return how long a block says it is, None when there is no whole header. Nothing of it is checked."""
    if len(data) < offset + HEADER_BYTES or data[offset : offset + 4] != MAGIC:
        return None
    return HEADER_BYTES + int(_FACTS.unpack_from(data, offset + _MARK.size)[0])


def block_at(data: memoryview, offset: int) -> BlockHeader | None:
    """Return the block at `offset` if it is there whole and as it was written."""
    length = block_bytes(data, offset)
    if length is None or len(data) < offset + length:
        return None
    crc = _MARK.unpack_from(data, offset)[1]
    if crc32(data[offset + _MARK.size : offset + length]) != crc:
        return None
    header = BlockHeader(offset, *_FACTS.unpack_from(data, offset + _MARK.size))
    if header.body_bytes != header.info_bytes + _ENDS.itemsize * header.records + header.size:
        return None
    return header


def info_of(data: memoryview, header: BlockHeader) -> BlockInfo:
    """Return the information on a block's records."""
    if not header.info_bytes:
        return _NOTHING
    start = header.offset + HEADER_BYTES
    return _decoder.decode(data[start : start + header.info_bytes])


def ends_of(data: memoryview, header: BlockHeader) -> IntArray:
    """Return where a block's records end, counted from where its first begins."""
    start = header.offset + HEADER_BYTES + header.info_bytes
    return np.frombuffer(data, _ENDS, header.records, start).astype(np.int64)


def chunks_of(
    source: str, data: memoryview, headers: Sequence[BlockHeader], after: int, *, wall: float, now: float
) -> list[Chunk]:
    """Return the records of consecutive blocks that end after a position; blocks of one kind become one chunk.

    wall, now: the clock's time, in wall and in monotonic seconds.
    """
    chunks = []
    for run, kind in _alike(data, headers):
        payload = b"".join(bytes(data[header.next_offset - header.size : header.next_offset]) for header in run)
        begins = run[0].position
        ends = np.concatenate([ends_of(data, header) + (header.position - begins) for header in run])
        # A wall clock that was set back since must make no arrival later than now: a batch would wait for it.
        arrived_at = now - max(0.0, wall - run[0].arrived_at)
        chunk = Chunk(
            Partition(source, PARTITION), payload, ends, begins, arrived_at, columns=kind.columns, fault=kind.fault
        )
        # The first of them may be acked already; `split_off` leaves the rest in the chunk.
        known = int(np.searchsorted(ends, after - begins, side="right"))
        if known == chunk.count:
            continue
        if known:
            chunk.split_off(known)
        chunks.append(chunk)
    return chunks


def tally(source: str, count: int, size: int, base: int, arrived_at: float) -> Chunk:
    """Return a chunk that counts as so many records without holding them; all end where the last one does."""
    # A view of one number: a backlog of millions of records takes no memory.
    ends = np.broadcast_to(np.int64(size), (count,))
    return Chunk(Partition(source, PARTITION), b"", ends, base, arrived_at)


def respooled(source: str, chunk: Chunk, base: int) -> Chunk:
    """Return a chunk's records where they lie in the spool."""
    ends = chunk.ends[chunk.first : chunk.last]
    payload = bytes(chunk.data())
    return Chunk(
        Partition(source, PARTITION),
        payload,
        ends - chunk.start if chunk.start else ends,
        base,
        chunk.arrived_at,
        columns=chunk.columns,
        fault=chunk.fault,
    )


def _alike(data: memoryview, headers: Sequence[BlockHeader]) -> Iterator[tuple[list[BlockHeader], BlockInfo]]:
    run: list[BlockHeader] = []
    kind = _NOTHING
    for header in headers:
        if header.records == 0:
            continue
        found = info_of(data, header)
        size = header.end - run[0].position if run else 0
        # A fault is about one record, whose chunk holds no other.
        apart = found != kind or found.fault is not None or size > _MERGED_BYTES
        if run and (apart or header.position != run[-1].end):
            yield run, kind
            run = []
        run.append(header)
        kind = found
    if run:
        yield run, kind


class SegmentScan(NamedTuple):
    """The content of a segment: whole requests up to an offset and a position, and the state of the rest."""

    length: int
    """The offset where the last whole request ends."""
    end: int
    """The position where it ends."""
    records_end: int
    """Where the last record ends, 0 without any; only blocks without records come after."""
    records: tuple[int, int]
    """How many records end after the first, and after the second, of the positions asked for."""
    keys: list[tuple[float, RequestKey]]
    is_torn: bool
    """Whether more comes, none of which was ever said to be safe."""
    is_damaged: bool
    """Whether more comes, or should, that had been said to be safe."""


def scan_segment(data: memoryview, first: int, *, acked: int, known_to: int, ends_at: int | None) -> SegmentScan:
    """Scan a segment whose records begin at `first`.

    acked, known_to: where acked records end, and those known to have been safe. ends_at: where the segment's records
    are known to end, since another one follows; None for the last one, which alone may have a torn end.
    """
    length, end, records_end, keys = 0, first, 0, []
    records = [0, 0]
    for request in _requests(data, first):
        for header in request:
            records_end = header.end if header.records else records_end
            for at, position in enumerate((acked, known_to)):
                records[at] += _ending_after(data, header, position)
            key = info_of(data, header).key
            if key is not None:
                keys.append((header.arrived_at, key))
        length, end = request[-1].next_offset, request[-1].end
    has_rest = length < len(data)
    # Less is here than was known to be safe, or than the next segment begins after; what is acked may be missing.
    is_damaged = (known_to if ends_at is None else ends_at) > max(end, acked)
    # A segment that another one follows was complete and durable: none of it can be a torn end.
    is_damaged = is_damaged or (has_rest and (ends_at is not None or _was_safe(data, length)))
    return SegmentScan(
        length, end, records_end, (records[0], records[1]), keys, has_rest and not is_damaged, is_damaged
    )


def _requests(data: memoryview, first: int) -> Iterator[list[BlockHeader]]:
    """Yield the blocks of each whole request, as far as they are as they were written."""
    offset, position = 0, first
    request: list[BlockHeader] = []
    while (header := block_at(data, offset)) is not None and header.position == position:
        request.append(header)
        offset, position = header.next_offset, header.end
        if not header.more:
            yield request
            request = []


def _ending_after(data: memoryview, header: BlockHeader, position: int) -> int:
    if header.position >= position:
        return header.records
    if header.end <= position:
        return 0
    return header.records - int(np.searchsorted(ends_of(data, header), position - header.position, side="right"))


def _was_safe(data: memoryview, offset: int) -> bool:
    """Whether a later block says that what lies at `offset` had been durable before it was written."""
    held = bytes(data[offset:])
    at = held.find(MAGIC, 1)
    # Records may hold what looks like blocks, and each look reads a block. After many looks in vain it is taken for
    # damage, which puts the segment aside and throws nothing away.
    for _ in range(_LOOKS_MAX):
        if at < 0:
            return False
        header = block_at(data, offset + at)
        if header is not None and header.synced > offset:
            return True
        # Over a whole block in one step: the records in it may look like blocks.
        at = held.find(MAGIC, at + 1 if header is None else header.next_offset - offset)
    return True
