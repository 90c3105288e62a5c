"""A followed file: where it is, how far it was read, and the states it goes through.

A file has two states that change apart from each other. `Presence` says what the last looks showed of its names,
`Progress` what is to be done with it. Both tables list every transition; the tail makes no other.
"""

from __future__ import annotations

from enum import Enum, auto

from streambatch.connectors.files.globs import FileStat
from streambatch.connectors.files.identity import NOTHING_KNOWN


class Presence(Enum):
    """What the last looks showed of a file's names."""

    PLACED = auto()
    """It is where it was found first."""
    RENAMED = auto()
    """It was seen under another name since."""
    MISSED = auto()
    """The last look showed it under no name: it is gone, or was renamed while the folder was read."""
    GONE = auto()
    """No look for a while showed it. Only a handle that is open still leads to it."""


PRESENCE_TRANSITIONS = frozenset(
    {
        (Presence.PLACED, Presence.RENAMED),  # another name that matches leads to it
        # A folder that is read while a file in it is renamed may show neither name: one look alone proves nothing.
        (Presence.PLACED, Presence.MISSED),
        (Presence.RENAMED, Presence.MISSED),
        (Presence.MISSED, Presence.GONE),  # the next look missed it too
        (Presence.MISSED, Presence.PLACED),  # the folder shows it again, or a copy took its place
        (Presence.MISSED, Presence.RENAMED),
        (Presence.GONE, Presence.PLACED),  # it was moved back, or a copy took its place
        (Presence.GONE, Presence.RENAMED),
    }
)


class Progress(Enum):
    """What is to be done with a followed file."""

    QUEUED = auto()
    """It may have bytes that were not read: it is read in its turn."""
    IDLE = auto()
    """It was read as far as it goes."""
    HELD = auto()
    """It can't be read at the moment, and others don't wait for it."""
    ASIDE = auto()
    """Its path no longer leads to it: the next look tells where it is."""
    DONE = auto()
    """It was renamed, did not grow for `rotate_wait`, and counts as complete. It is kept, should it grow after all."""
    OVER = auto()
    """It is followed no longer."""


PROGRESS_TRANSITIONS = frozenset(
    {
        (Progress.IDLE, Progress.QUEUED),  # a look shows a change, or it is due and has bytes left
        (Progress.DONE, Progress.QUEUED),  # a look shows a change
        (Progress.ASIDE, Progress.QUEUED),  # a look shows it under another path
        (Progress.HELD, Progress.QUEUED),  # the wait for the next attempt is over
        (Progress.QUEUED, Progress.IDLE),  # read as far as it goes, or its unread bytes are gone with it
        (Progress.QUEUED, Progress.DONE),  # read again, and nothing was new: it is as complete as before
        (Progress.QUEUED, Progress.ASIDE),  # it can't be opened, since its path leads elsewhere
        (Progress.QUEUED, Progress.HELD),  # it can't be opened or read
        # Its handle can't be asked how long it is, whatever was to be done with it.
        (Progress.IDLE, Progress.HELD),
        (Progress.DONE, Progress.HELD),
        (Progress.ASIDE, Progress.IDLE),  # the look did not find it either
        (Progress.ASIDE, Progress.DONE),
        (Progress.IDLE, Progress.DONE),  # it is due
        (Progress.DONE, Progress.IDLE),  # it grew after all
        # Nothing leads to it any more and it was read to its end, or a copy took its place.
        (Progress.IDLE, Progress.OVER),
        (Progress.QUEUED, Progress.OVER),
        (Progress.DONE, Progress.OVER),
    }
)


class Offsets:
    """How far a file was read."""

    __slots__ = ("end", "from_end", "is_done", "read_to", "start", "was_opened")

    def __init__(self) -> None:
        self.read_to = 0
        """Offset of the next byte to read."""
        self.start = 0
        """Where reading began."""
        self.was_opened = False
        """Whether reading began in this run."""
        self.from_end = False
        """Reading is yet to begin, after the last record that ends within the first `start` bytes."""
        self.is_done = False
        """Whether it counted as complete when it was last read, and did not grow since."""
        self.end = 0
        """Where its last record ended, once it is done."""


class Followed:
    """One file, whatever its name is."""

    __slots__ = (
        "grew_at", "identity", "is_renamed", "links", "offsets", "partition", "path", "presence", "progress", "size",
        "stat",
    )  # fmt: skip

    def __init__(self, partition: str, path: str, stat: FileStat, now: float, *, is_renamed: bool = False) -> None:
        self.partition = partition
        """Its name for good, until it is cut back."""
        self.path, self.stat = path, stat
        """Where it was last found, and what the system said of it there."""
        self.size = stat.size
        """How long it was last seen, by its path or a handle."""
        self.links = 0
        """How many names a handle says that it has, while no name that matches leads to it."""
        self.identity = NOTHING_KNOWN
        self.is_renamed = is_renamed
        """Whether it was ever seen under another name than the first: what reads it again is to know."""
        self.grew_at = now
        """When it last grew, or changed its name."""
        self.offsets = Offsets()
        self.presence = Presence.RENAMED if is_renamed else Presence.PLACED
        self.progress = Progress.IDLE

    @property
    def is_missing(self) -> bool:
        """Whether the last look showed it under no name."""
        return self.presence in (Presence.MISSED, Presence.GONE)

    @property
    def is_leaving(self) -> bool:
        """Whether it is no longer, or not under its first name, among the files that match."""
        return self.is_renamed or self.is_missing
