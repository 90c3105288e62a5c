"""How far the partitions that can be read again have come: read, acked, hashed; and which of it no checkpoint has."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from streambatch.core.chunks import Partition
from streambatch.core.ledger import Ledger
from streambatch.core.parts import Reader
from streambatch.durability.stored import JournalEntry, PartitionProgress, StoredPartition


class PartitionPositions:
    """The progress of each partition. A source that can't be read again has none."""

    def __init__(
        self,
        stored: Mapping[str, Mapping[str, StoredPartition]],
        readers: Iterable[Reader],
        ledger: Ledger,
    ) -> None:
        """stored: the partitions as the last checkpoint has them, by source and name."""
        self.resumable: Mapping[str, Reader] = {reader.name: reader for reader in readers if reader.is_resumable}
        """The readers whose partitions are kept, by their names."""
        self._ledger = ledger
        self._partitions = {
            Partition(source, name): _progress_of(partition)
            for source, names in stored.items()
            for name, partition in names.items()
        }
        self._digests: dict[Partition, str] = {}
        self._changed: set[Partition] = set()
        self._over: set[Partition] = set()

    def look(self) -> None:
        """Take in which partitions are new, were read on, or are over."""
        for partition, (begun, reached) in self._ledger.reached().items():
            known = self._known(partition, begun)
            # Records are read again after a restart: what was received before may lie further than this run has come.
            self._change(partition, known, read_to=max(known.read_to, reached))
        for name, reader in self.resumable.items():
            for partition_name, notes in reader.notes().items():
                partition = Partition(name, partition_name)
                if notes is None:
                    self._over.add(partition)
                    continue
                self._over.discard(partition)
                self._change(partition, self._known(partition, int(notes.get("start", 0))), notes=notes)

    def look_for_late_starts(self) -> bool:
        """Take in new partitions. Returns whether one of them is not read from its start."""
        known = set(self._partitions)
        self.look()
        return any(self._partitions[each].position for each in self._changed - known)

    def hashed(self, digests: Mapping[Partition, str]) -> None:
        """Take in the digests of partitions that were written to since the last call."""
        self._digests.update(digests)

    def advance(self, entries: Sequence[JournalEntry], *, with_digests: bool) -> None:
        """Move the positions past what is acked. with_digests: whether the digests are of all that is acked then."""
        acked = {(each.source, each.partition): each.end for entry in entries for each in entry.ranges}
        for (source, name), position in acked.items():
            if source in self.resumable:
                partition = Partition(source, name)
                # A digest of more records than are acked could not be verified against them.
                digest = self._digests.get(partition) if with_digests else None
                known = self._known(partition, position)
                read_to = max(known.read_to, position)
                self._change(partition, known, position=position, read_to=read_to, digest=digest)

    def changed(self) -> dict[Partition, PartitionProgress]:
        """Return the progress that no checkpoint has."""
        return {each: self._partitions[each] for each in self._changed}

    def acked_and_over(self) -> list[Partition]:
        """Return the partitions that may be forgotten."""
        return [each for each in self._over if self._is_acked(each)]

    def stored(self, partitions: Mapping[Partition, PartitionProgress]) -> None:
        """Take note that progress is in a checkpoint; what has changed meanwhile stays to be stored."""
        for partition, progress in partitions.items():
            # Progress is replaced by each change: another object has changed since.
            if self._partitions.get(partition) is progress:
                self._changed.discard(partition)

    def forget(self, partition: Partition) -> None:
        """Forget a partition that is over."""
        self._over.discard(partition)
        self._changed.discard(partition)
        self._partitions.pop(partition, None)
        self._digests.pop(partition, None)

    def _known(self, partition: Partition, begun: int) -> PartitionProgress:
        """Return how far a partition has come: one that is new, to where it was begun."""
        return self._partitions.get(partition) or PartitionProgress(position=begun, read_to=begun, notes={})

    def _change(self, partition: Partition, known: PartitionProgress, **changes: Any) -> None:
        self._partitions[partition] = msgspec.structs.replace(known, **changes)
        self._changed.add(partition)

    def _is_acked(self, partition: Partition) -> bool:
        known = self._partitions.get(partition)
        return known is None or known.position >= known.read_to


def _progress_of(stored: StoredPartition) -> PartitionProgress:
    # Without the digest: it is of what one run has acked.
    return PartitionProgress(position=stored.position, read_to=stored.read_to, notes=stored.notes, digest=None)
