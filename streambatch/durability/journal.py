"""The journal's bytes: the entries of one checkpoint, by column, as differences, compressed.

Batches that follow each other differ little: a range starts where the one before it ended, so that most columns are
runs of the same small number. Names are written once.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from itertools import accumulate, chain, islice, pairwise
from typing import Any

import msgspec

from streambatch.durability.stored import IntendedBatch, JournalEntry, RecordRange

_LEVEL = 1
Name = str | bytes


class _Columns(msgspec.Struct, array_like=True):
    names: list[tuple[Any, Any]]
    batches: list[int]
    scored: list[int]
    dead: list[int]
    placed: list[bool]
    segments: list[int]
    lengths: list[int]
    ranges: list[int]
    partitions: list[int]
    gaps: list[int]
    sizes: list[int]
    records: list[int]


_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(_Columns)
_INTENTS = msgspec.msgpack.Decoder(tuple[int, list[tuple[Any, Any, int, int, int]]])


def pack_journal(entries: Sequence[JournalEntry]) -> bytes:
    """Return the entries as bytes."""
    ranges = list(chain.from_iterable(entry.ranges for entry in entries))
    places = [entry.place or (0, 0) for entry in entries]
    names: dict[tuple[str, str], int] = {}
    partitions = [names.setdefault((r.source, r.partition), len(names)) for r in ranges]
    columns = _Columns(
        names=[(stored_name(source), stored_name(name)) for source, name in names],
        batches=_differences([entry.batch for entry in entries]),
        scored=[entry.scored for entry in entries],
        dead=[entry.dead for entry in entries],
        placed=[entry.place is not None for entry in entries],
        segments=_differences([segment for segment, _ in places]),
        lengths=_differences([length for _, length in places]),
        ranges=[len(entry.ranges) for entry in entries],
        partitions=partitions,
        gaps=_gaps(ranges, partitions, len(names)),
        sizes=[r.end - r.start for r in ranges],
        records=[r.records for r in ranges],
    )
    return zlib.compress(_ENCODER.encode(columns), _LEVEL)


def unpack_journal(packed: bytes) -> list[JournalEntry]:
    """Return the entries that `pack_journal` packed. Raises zlib.error or msgspec.MsgspecError for other bytes."""
    columns = _DECODER.decode(zlib.decompress(packed))
    ranges = _ranges(columns)
    rows = zip(
        accumulate(columns.batches), columns.scored, columns.dead, columns.placed, accumulate(columns.segments),
        accumulate(columns.lengths), columns.ranges,
        strict=True,
    )  # fmt: skip
    return [
        JournalEntry(batch, tuple(islice(ranges, count)), scored, dead, (segment, length) if placed else None)
        for batch, scored, dead, placed, segment, length, count in rows
    ]


def pack_intent(intent: IntendedBatch) -> bytes:
    """Return what there is of an intent besides its number as bytes."""
    ranges = [(stored_name(r.source), stored_name(r.partition), r.start, r.end, r.records) for r in intent.ranges]
    return _ENCODER.encode((intent.revision, ranges))


def unpack_intent(batch: int, packed: bytes) -> IntendedBatch:
    """Return the intent that `pack_intent` packed."""
    revision, ranges = _INTENTS.decode(packed)
    return IntendedBatch(
        batch,
        tuple(RecordRange(loaded_name(source), loaded_name(name), *rest) for source, name, *rest in ranges),
        revision,
    )


def stored_name(name: str) -> Name:
    """Return a name as it is stored: as text, or as bytes where it isn't Unicode, as a file's name needn't be."""
    if name.isascii():
        return name
    try:
        name.encode()
    except UnicodeEncodeError:
        return name.encode(errors="surrogateescape")
    return name


def loaded_name(stored: Name) -> str:
    """Return the name that `stored_name` was given."""
    return stored if isinstance(stored, str) else stored.decode(errors="surrogateescape")


def _differences(values: Sequence[int]) -> list[int]:
    return [*values[:1], *(after - before for before, after in pairwise(values))]


def _gaps(ranges: Sequence[RecordRange], partitions: Sequence[int], count: int) -> list[int]:
    """Return for each range how far it starts from the end of the range before it in its partition."""
    # From the end of the range before it: ranges follow each other, so that nearly all gaps are 0 and compress well.
    ends, gaps = [0] * count, []
    for r, partition in zip(ranges, partitions, strict=True):
        gaps.append(r.start - ends[partition])
        ends[partition] = r.end
    return gaps


def _ranges(columns: _Columns) -> Iterator[RecordRange]:
    names = [(loaded_name(source), loaded_name(name)) for source, name in columns.names]
    ends = [0] * len(names)
    for partition, gap, size, records in zip(
        columns.partitions, columns.gaps, columns.sizes, columns.records, strict=True
    ):
        start = ends[partition] + gap
        ends[partition] = start + size
        yield RecordRange(*names[partition], start, start + size, records)
