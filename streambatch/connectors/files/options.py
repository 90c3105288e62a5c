"""The options of the running parts of a file source. `source` has those of a config."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from streambatch.core.chunks import Partition
from streambatch.core.codec import FramerStart


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadingOptions:
    """What to read, and how. See `FileSource` for each."""

    source: str
    """The source's name."""
    patterns: Sequence[str]
    """Paths and globs."""
    format: str
    compression: str
    max_record_bytes: int
    follow: bool
    from_end: bool
    """Whether followed files that are there at the start are read from their end."""
    rotate_wait: float

    def start_of(self, partition: str) -> FramerStart:
        """Return the start of a partition, for a framer."""
        return FramerStart(partition=Partition(self.source, partition), max_record_bytes=self.max_record_bytes)
