"""The stored state of a resumable source, for the suite that stops a source and resumes it."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from streambatch.core.checkpoints import PartitionNotes, SavedPartition

Found = dict[str, list[tuple[int, bytes]]]
"""By partition: position and own bytes of each record."""


class AckedRecords:
    """The records acked in the runs of a source so far, and the state to resume it with.

    found: those records. stops: number of runs so far.
    """

    def __init__(self) -> None:
        self.found: Found = {}
        self.stops = 0
        self._notes: dict[str, PartitionNotes] = {}
        self._read_to: dict[str, int] = {}

    @property
    def count(self) -> int:
        return sum(map(len, self.found.values()))

    def saved(self) -> dict[str, SavedPartition]:
        """Return the state for the next run, as read from a checkpoint."""
        return {
            name: SavedPartition(
                position=self._acked_to(name),
                read_to=self._read_to.get(name, 0),
                # Through JSON, as in a state folder: what JSON can't hold is found here.
                notes=msgspec.json.decode(msgspec.json.encode(notes)),
            )
            for name, notes in self._notes.items()
        }

    def stopped(self, found: Found, notes: Mapping[str, PartitionNotes | None], share: float) -> None:
        """Record the records of a run, and ack this share of each partition's."""
        self.stops += 1
        for name, records in found.items():
            starts, before = records[0][0], self._acked_to(name)
            assert starts > before, f"{name}: resumed from {before}, it went back to {starts}"
            self.found.setdefault(name, []).extend(records[: round(len(records) * share)])
            self._read_to[name] = max(self._read_to.get(name, 0), records[-1][0])
        self._notes |= {name: each for name, each in notes.items() if each is not None}
        for name in found:
            assert name in self._notes or notes.get(name, 0) is None, f"it told no notes of {name}"
        for name, each in notes.items():
            if each is None and self._acked_to(name) >= self._read_to.get(name, 0):
                self._notes.pop(name, None)

    def _acked_to(self, name: str) -> int:
        records = self.found.get(name)
        return records[-1][0] if records else 0
