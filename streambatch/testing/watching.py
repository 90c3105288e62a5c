"""Checks of the suite for sources, on a running source and on its chunks."""

from __future__ import annotations

from collections.abc import Sequence

import anyio
import numpy as np

from streambatch.codecs.table.chunk import TableChunk
from streambatch.core.chunks import Chunk
from streambatch.core.parts import Reader, Source
from streambatch.core.wrapping import RunningSource
from streambatch.testing.fakes import CollectingIntake
from streambatch.testing.resuming import Found

PUTS_IN_A_ROW = 20_000


class WatchedIntake(CollectingIntake):
    """Fails for a source that never lets other tasks run: nothing could stop it as long as `put` doesn't wait."""

    ended = False
    _in_a_row = 0

    @property
    def has_room(self) -> bool:
        """False only once a `put` waits, so that a source that looks at this first gets to wait as well."""
        return not self.waiting

    async def watch(self) -> None:
        """Reset the count whenever other tasks get to run. Start it beside the source."""
        while True:
            self._in_a_row = 0
            await anyio.sleep(0.001)

    async def put(self, chunk: Chunk) -> None:
        self._in_a_row += 1
        assert self._in_a_row < PUTS_IN_A_ROW, "it puts and puts and never lets other tasks run: await a checkpoint"
        await super().put(chunk)


def check_chunk(chunk: Chunk, source: Source | RunningSource) -> None:
    """Check that a chunk is valid, and of this source."""
    assert chunk.partition.source == source.name, f"{chunk} is of source {chunk.partition.source}, not {source.name}"
    assert chunk.partition.name, f"{chunk} has a partition without a name"
    assert chunk.count > 0, f"{chunk} is empty"
    assert chunk.fault is None or chunk.count == 1, f"{chunk} has a fault, which is one record's"
    if not isinstance(chunk, TableChunk):
        _check_bytes(chunk)


def _check_bytes(chunk: Chunk) -> None:
    payload, ends = chunk.payload, chunk.ends
    assert isinstance(payload, bytes), f"{chunk} holds {type(payload).__name__}, which may change; expected bytes"
    assert ends.dtype == np.int64, f"ends of {chunk} are {ends.dtype}; expected int64"
    assert (np.diff(ends) > 0).all(), f"ends of {chunk} do not rise"
    assert ends[0] > 0, f"the first record of {chunk} ends where it starts"
    assert ends[-1] <= len(payload), f"{chunk} ends at {ends[-1]} of {len(payload)} bytes"


def check_memory(intake: CollectingIntake, reader: Reader) -> None:
    """Check that a reader gave back what it took."""
    used, lowest = intake.memory.used, intake.memory.lowest
    assert lowest >= 0, f"{reader.name} put {-lowest} bytes that it never took from the memory budget"
    assert used == 0, f"{reader.name} keeps {used} bytes of the memory budget"


def check_records(found: Found, records: Sequence[bytes]) -> None:
    """Check that each record came once, and those of a partition in order."""
    place = {record: at for at, record in enumerate(records)}
    seen: set[int] = set()
    for name, each in found.items():
        last = -1
        for _, record in each:
            assert record in place, f"{name}: a record that nobody wrote: {record[:80]!r}"
            at = place[record]
            assert at not in seen, f"{name}: record {at} came twice"
            assert at > last, f"{name}: record {at} came after record {last}"
            last = at
            seen.add(at)
    missing = sorted(set(place.values()) - seen)
    assert not missing, f"{len(missing)} of {len(records)} records did not come, the first is number {missing[0]}"
