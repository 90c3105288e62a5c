"""The ack ledger: every record counted, each count on its own, and positions that move only past what is durable.

Pure: events in, counts and positions out. For each source, at every moment,
`received + recovered = scored + dead_lettered + dropped + unacked`. Batches may be acked in any order; a partition's
position moves along the contiguous acked prefix of its batches. What lies before the position up to which a partition
was received by an earlier run is recovered, and not received again.
"""

from collections import deque
from collections.abc import Iterable, Mapping
from typing import TypeVar

import numpy as np

from streambatch.core.batches import Batch
from streambatch.core.chunks import Chunk, Partition, Reason
from streambatch.core.outcomes import Outcome, Stage
from streambatch.core.report import Counts, total_of

K = TypeVar("K")


class _Entry:
    """The share of one batch in one partition."""

    __slots__ = ("is_acked", "position")

    def __init__(self, position: int) -> None:
        self.position = position
        self.is_acked = False


class Ledger:
    """Counts and positions of one run."""

    def __init__(self) -> None:
        self.sources: dict[str, Counts] = {}
        self.dead_letters: dict[tuple[Stage, Reason], int] = {}
        self._open: dict[Partition, deque[_Entry]] = {}  # in the order in which they were cut
        self._batches: dict[int, list[tuple[Partition, _Entry]]] = {}  # the same entries, by the batch's sequence
        self._known_to: dict[Partition, int] = {}  # up to where an earlier run received
        self._resumable: set[str] = set()
        self._reached: dict[Partition, tuple[int, int]] = {}  # from and to where this run received, since `reached`

    def add_source(self, name: str, *, is_resumable: bool = False) -> None:
        """Start a source's counts at zero. is_resumable: note how far its partitions are received; see `reached`."""
        self.sources[name] = Counts()
        if is_resumable:
            self._resumable.add(name)

    def resume(self, partition: Partition, read_to: int) -> None:
        """Count a partition's records up to this position as recovered: an earlier run received them."""
        self._known_to[partition] = read_to

    def received(self, chunk: Chunk) -> int:
        """Count a chunk's records as in flight: as recovered where an earlier run had received them, else as received.

        Returns how many were recovered.
        """
        again = self._known(chunk) if self._known_to else 0
        partition = chunk.partition
        if partition.source in self._resumable:
            begun = self._reached.get(partition)
            self._reached[partition] = (chunk.begins_at if begun is None else begun[0], chunk.position)
        counts = self.sources[partition.source]
        counts.received += chunk.count - again
        counts.recovered += again
        counts.unacked += chunk.count
        return again

    def reached(self) -> Mapping[Partition, tuple[int, int]]:
        """Return where what was received since the last call begins and ends, by partition."""
        reached, self._reached = self._reached, {}
        return reached

    def recovered(self, chunk: Chunk) -> None:
        """Count a chunk's records as recovered and in flight."""
        counts = self.sources[chunk.partition.source]
        counts.recovered += chunk.count
        counts.unacked += chunk.count

    def dropped(self, chunk: Chunk, reason: str) -> None:
        """Count a received chunk's records as given up before they were batched."""
        counts = self.sources[chunk.partition.source]
        counts.unacked -= chunk.count
        _add(counts.dropped, reason, chunk.count)

    def lost(self, source: str, records: int) -> None:
        """Count records in flight as given up since what held them is damaged."""
        counts = self.sources[source]
        counts.unacked -= records
        _add(counts.dropped, "corrupt", records)

    def refused(self, source: str, records: int, reason: str) -> None:
        """Count records whose sender was told no."""
        _add(self.sources[source].refused, reason, records)

    def opened(self, batch: Batch) -> None:
        """Hold the positions of a batch's partitions back until it is acked: it was cut."""
        if len(batch.chunks) == 1:
            chunk = batch.chunks[0]
            self._batches[batch.sequence] = [(chunk.partition, self._enter(chunk))]
            return
        entries: dict[Partition, _Entry] = {}
        for chunk in batch.chunks:
            entry = entries.get(chunk.partition)
            if entry is None:
                entries[chunk.partition] = self._enter(chunk)
            else:
                # The chunks of a partition come in order, so that the last one says where the batch ends in it.
                entry.position = chunk.position
        self._batches[batch.sequence] = list(entries.items())

    def acked(self, batch: Batch, outcome: Outcome) -> Mapping[Partition, int]:
        """Count a batch that is durable. Returns the partitions whose position moved, and where it is now."""
        settle(self.sources, batch, outcome)
        for (_, stage, reason), records in outcome.dead.items():
            _add(self.dead_letters, (stage, reason), records)
        return self._move(batch)

    def after(self, finished: Iterable[tuple[Batch, Outcome]]) -> dict[str, Counts]:
        """Return the counts per source as they will be once these batches are acked."""
        sources = {name: counts.copy() for name, counts in self.sources.items()}
        for batch, outcome in finished:
            settle(sources, batch, outcome)
        return sources

    def totals(self) -> Counts:
        """Return the counts of all sources together."""
        return total_of(self.sources.values())

    def _known(self, chunk: Chunk) -> int:
        """Return how many of a chunk's records an earlier run had received."""
        read_to = self._known_to.get(chunk.partition)
        if read_to is None:
            return 0
        if chunk.position <= read_to:
            return chunk.count
        # This chunk goes beyond it, and a partition never goes back.
        del self._known_to[chunk.partition]
        ends = np.array([chunk.position_of(index) for index in range(chunk.count)])
        return int(np.searchsorted(ends, read_to, side="right"))

    def _enter(self, chunk: Chunk) -> _Entry:
        entry = _Entry(chunk.position)
        waiting = self._open.get(chunk.partition)
        if waiting is None:
            self._open[chunk.partition] = deque([entry])
        else:
            waiting.append(entry)
        return entry

    def _move(self, batch: Batch) -> dict[Partition, int]:
        moved: dict[Partition, int] = {}
        for partition, entry in self._batches.pop(batch.sequence):
            entry.is_acked = True
            waiting = self._open[partition]
            # Never past an open entry: a restart from there would skip the records of a batch that is not durable.
            while waiting and waiting[0].is_acked:
                moved[partition] = waiting.popleft().position
            if not waiting:
                # A source has a partition for each connection: without this each would leave an empty deque behind.
                del self._open[partition]
        return moved


def settle(sources: Mapping[str, Counts], batch: Batch, outcome: Outcome) -> None:
    """Move a batch's records from in flight to what became of them."""
    for chunk in batch.chunks:
        sources[chunk.partition.source].unacked -= chunk.count
    for source, records in outcome.scored.items():
        sources[source].scored += records
    for source, records in outcome.filtered.items():
        _add(sources[source].dropped, "filtered", records)
    for (source, _, _), records in outcome.dead.items():
        sources[source].dead_lettered += records


def _add(counts: dict[K, int], key: K, count: int) -> None:
    counts[key] = counts.get(key, 0) + count
