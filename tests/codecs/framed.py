"""Bytes cut into blocks, framed, and told record by record: what tests of framings and codecs compare."""

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from hypothesis import strategies as st

from streambatch.codecs.formats import framing
from streambatch.core.chunks import Chunk, Fault, Partition
from streambatch.core.codec import Framer

PARTITION = Partition("in", "a")
MIB = 1 << 20


class Framed(NamedTuple):
    """A record as a user sees it: its own bytes, where it ends, what it died of."""

    record: bytes
    position: int
    fault: Fault | None = None


def framer_of(name: str, partition: Partition = PARTITION, **options: Any) -> Framer:
    """Return a fresh framer, also one that starts in mid-partition."""
    framing_of: Any = framing(name)
    framer: Framer = framing_of.framer(partition, **options)
    return framer


def chunks_in(
    name: str,
    blocks: Iterable[bytes],
    *,
    max_record_bytes: int = MIB,
    position: int = 0,
    columns: tuple[str, ...] | None = None,
    cut_off: bool = False,
    partition: Partition = PARTITION,
) -> list[Chunk]:
    """Return the chunks of a whole partition, having checked what every framer promises on the way."""
    framer = framer_of(name, partition, max_record_bytes=max_record_bytes, position=position, columns=columns)
    chunks: list[Chunk] = []
    pending_max = max(max_record_bytes + 4, (64 << 10) + 1)
    for block in blocks:
        chunks += framer.feed(block, 1.5)
        assert framer.pending <= pending_max
        assert framer.position == (chunks[-1].position if chunks else position)
    chunks += framer.end(2.5, cut_off=cut_off)
    assert framer.pending == 0
    assert all(chunk.count > 0 and chunk.arrived_at in (1.5, 2.5) for chunk in chunks)
    return chunks


def records_in(name: str, blocks: Iterable[bytes], **options: Any) -> list[Framed]:
    """Return the records of a whole partition."""
    return told(name, chunks_in(name, blocks, **options))


def told(name: str, chunks: Sequence[Chunk]) -> list[Framed]:
    """Return the records of chunks."""
    strip = framing(name).strip
    return [
        Framed(bytes(chunk.raw(i)) if chunk.fault else strip(chunk.raw(i)), chunk.position_of(i), chunk.fault)
        for chunk in chunks
        for i in range(chunk.count)
    ]


def cut(data: bytes, places: Iterable[int]) -> list[bytes]:
    """Return `data` in blocks, cut at `places`, some of which may lie past its end."""
    marks = [0, *sorted(place for place in places if place < len(data)), len(data)]
    return [data[start:stop] for start, stop in pairwise(marks)]


def places() -> st.SearchStrategy[list[int]]:
    """Places to cut short inputs at."""
    return st.lists(st.integers(0, 120), max_size=8)


def made_of(*pieces: bytes, max_size: int = 60) -> st.SearchStrategy[bytes]:
    """Bytes made of the pieces that a format is sensitive to, and sometimes of anything."""
    return st.lists(st.sampled_from(pieces) | st.binary(max_size=4), max_size=max_size).map(b"".join)
