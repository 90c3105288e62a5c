"""The ack ledger: every record counted, each count on its own, and positions that move only past what is durable.

Pure: told what happened, it answers. For each source, at every moment,
`received + recovered = scored + dead_lettered + dropped + unacked`. Batches may be acked in any order; a partition's
position moves along the contiguous acked prefix of its batches.
"""

from collections import deque
from collections.abc import Mapping
from typing import TypeVar

from streambatch.records import Batch, Chunk, Outcome, Partition, Reason, Stage
from streambatch.state.report import Counts

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
        self._open: dict[Partition, deque[_Entry]] = {}
        self._batches: dict[int, list[tuple[Partition, _Entry]]] = {}

    def add_source(self, name: str) -> None:
        """Start a source's counts at zero."""
        self.sources[name] = Counts()

    def received(self, chunk: Chunk) -> None:
        """Count a chunk's records as received and in flight."""
        counts = self.sources[chunk.partition.source]
        counts.received += chunk.count
        counts.unacked += chunk.count

    def dropped(self, chunk: Chunk, reason: str) -> None:
        """Count a received chunk's records as given up before they were batched."""
        counts = self.sources[chunk.partition.source]
        counts.unacked -= chunk.count
        _add(counts.dropped, reason, chunk.count)

    def refused(self, source: str, records: int, reason: str) -> None:
        """Count records whose sender was told no."""
        _add(self.sources[source].refused, reason, records)

    def opened(self, batch: Batch) -> None:
        """Learn that a batch was cut; its partitions' positions now wait for its ack."""
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
                entry.position = chunk.position
        self._batches[batch.sequence] = list(entries.items())

    def acked(self, batch: Batch, outcome: Outcome) -> Mapping[Partition, int]:
        """Learn that a batch's scores and rejects are durable. Returns the partitions whose position moved."""
        for chunk in batch.chunks:
            self.sources[chunk.partition.source].unacked -= chunk.count
        for source, records in outcome.scored.items():
            self.sources[source].scored += records
        for source, records in outcome.filtered.items():
            _add(self.sources[source].dropped, "filtered", records)
        for (source, stage, reason), records in outcome.dead.items():
            self.sources[source].dead_lettered += records
            _add(self.dead_letters, (stage, reason), records)
        return self._move(batch)

    def totals(self) -> Counts:
        """Return the counts of all sources together."""
        total = Counts()
        for counts in self.sources.values():
            total.add(counts)
        return total

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
            while waiting and waiting[0].is_acked:
                moved[partition] = waiting.popleft().position
            if not waiting:
                del self._open[partition]
        return moved


def _add(counts: dict[K, int], key: K, count: int) -> None:
    counts[key] = counts.get(key, 0) + count
