"""Spools made by hand for tests: requests in, and what a spool holds, out."""

from collections.abc import Sequence
from pathlib import Path

from streambatch.core.chunks import Chunk, Fault, Partition
from streambatch.spool.blocks import RequestKey, block_of, chunks_of, key_block
from streambatch.spool.folder import SegmentDamaged, SpoolFolder, SpoolSegment
from streambatch.spool.keys import SpoolKeys, hashed
from streambatch.spool.request import SpoolRequest
from tests.chunks import chunk_of

NOW = 1_000_000.0
DAY = 86400.0


def request(
    *parts: Sequence[bytes], key: str | None = None, columns: tuple[str, ...] | None = None, fault: Fault | None = None
) -> SpoolRequest:
    """Return a request of lines, a block for each of `parts`."""
    chunks = [chunk_of(lines) for lines in parts]
    for chunk in chunks:
        chunk.columns, chunk.fault = columns, fault
    blocks = [block_of(chunk, NOW) for chunk in chunks]
    if key is None:
        return SpoolRequest(blocks, None, None)
    stored = RequestKey(hashed(key), b"d" * 16, sum(chunk.count for chunk in chunks))
    return SpoolRequest([*blocks, key_block(stored, NOW, is_alone=not blocks)], None, stored)


def opened(path: Path, *, acked: int = 0, known_to: int = 0, segment_bytes: int = 1 << 20) -> SpoolFolder:
    folder = SpoolFolder(path, segment_bytes, SpoolKeys(path, DAY))
    folder.open(acked, known_to)
    return folder


def chunks_in(folder: SpoolFolder, after: int = 0) -> list[Chunk]:
    """Read a spool to its end; what is damaged is put aside on the way."""
    found: list[Chunk] = []
    for segment in list(folder.segments):
        found += _chunks_in(folder, segment, after)
    return found


def records_in(folder: SpoolFolder, after: int = 0) -> list[bytes]:
    return [bytes(chunk.raw(i)).rstrip(b"\n") for chunk in chunks_in(folder, after) for i in range(chunk.count)]


def stored_at(path: Path, acked: int = 0, known_to: int = 0) -> list[bytes]:
    """Return the records of a spool that is opened for it."""
    folder = opened(path, acked=acked, known_to=known_to)
    try:
        return records_in(folder, acked)
    finally:
        folder.close()


def _chunks_in(folder: SpoolFolder, segment: SpoolSegment, after: int) -> list[Chunk]:
    found: list[Chunk] = []
    offset = 0
    while offset < segment.length:
        try:
            data, heads = folder.read(segment, offset, segment.length, 64)
        except SegmentDamaged:
            if not segment.is_aside:
                folder.put_aside(segment)
            break
        found += chunks_of("in", data, heads, after, wall=NOW, now=NOW)
        offset += heads[-1].next_offset
    return found


PARTITION = Partition("in", "spool")
