"""Access to a past run: its input, where it can still be read, and the files of its output."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from streambatch.core.checkpoints import PartitionNotes
from streambatch.core.chunks import Chunk


class ArchivedPartition(ABC):
    """A partition that a run has read and that can be read again. Blocking."""

    location: str
    """Where it is now, for people."""

    @abstractmethod
    def chunks(self, first: int, last: int) -> Iterator[Chunk]:
        """Yield the records between two positions. Raises OSError, Corrupt or ValueError for what can't be read."""

    def columns(self) -> tuple[str, ...] | None:
        """Return the columns in its header; None if there is none, or it can't be read."""
        return None


class Archive(ABC):
    """The partitions of one source, as they are now. Blocking."""

    @abstractmethod
    def find(self, partition: str, notes: PartitionNotes) -> ArchivedPartition | None:
        """Return a partition by its name and the notes that a run stored of it; None if it is no longer there."""


class OutputLayout(NamedTuple):
    """The files of an output, and what they hold."""

    path: Path
    is_rotated: bool
    format: str = "jsonl"
    compression: str = "none"
