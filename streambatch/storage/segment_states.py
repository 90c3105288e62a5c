"""The states of the segment that an output writes to, and the transitions between them."""

from __future__ import annotations

from enum import Enum, auto

from streambatch.storage.files import AppendFile


class SegmentState(Enum):
    """The state of the segment that is, or will be, written."""

    SHUT = auto()
    """The output is not open."""
    AWAITED = auto()
    """It has a number, and no file yet: the next write begins it."""
    EMPTY = auto()
    """Its file is there and claimed, and holds no record that counts: its age does not count yet."""
    FILLING = auto()
    """It holds records, in the file or about to be."""
    CLOSING = auto()
    """A checkpoint says that it is complete: nothing is added, and it gets its name next."""
    UNSAID = auto()
    """The one before has its name, and no checkpoint says so yet: that is stored before this one is begun."""


SEGMENT_TRANSITIONS = frozenset(
    {
        (SegmentState.SHUT, SegmentState.AWAITED),  # looked for, and not there
        (SegmentState.SHUT, SegmentState.EMPTY),  # looked for, and claimed
        (SegmentState.AWAITED, SegmentState.EMPTY),  # begun
        (SegmentState.UNSAID, SegmentState.AWAITED),  # a checkpoint says that the one before has its name
        (SegmentState.EMPTY, SegmentState.FILLING),  # a record was written, or is in the container
        (SegmentState.FILLING, SegmentState.CLOSING),  # it is due, or the output is finished, and a checkpoint says so
        (SegmentState.CLOSING, SegmentState.UNSAID),  # it has its name
        (SegmentState.CLOSING, SegmentState.AWAITED),  # it has its name, and there are no checkpoints
        # A crash came between the checkpoint that says "closing" and the next: the segment gets its name now.
        (SegmentState.EMPTY, SegmentState.UNSAID),
        (SegmentState.AWAITED, SegmentState.UNSAID),
        # Given back as it is, also when opening failed.
        (SegmentState.AWAITED, SegmentState.SHUT),
        (SegmentState.EMPTY, SegmentState.SHUT),
        (SegmentState.FILLING, SegmentState.SHUT),
        (SegmentState.CLOSING, SegmentState.SHUT),
        (SegmentState.UNSAID, SegmentState.SHUT),
    }
)


class Segment:
    """The segment that is, or will be, written."""

    __slots__ = ("begun_at", "content", "file", "number", "state")

    def __init__(self) -> None:
        self.state = SegmentState.SHUT
        self.number = 0
        """From 1 on; 0 while the output is shut."""
        self.file: AppendFile | None = None
        self.content = 0
        """Bytes of the file that hold whole records: the length that a checkpoint may store."""
        self.begun_at: float | None = None
        """When its first record was written."""

    def become(self, state: SegmentState) -> None:
        """Make a transition of SEGMENT_TRANSITIONS: the only place where the state changes."""
        self.state = state
