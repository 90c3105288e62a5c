"""Which followed files are read next."""

from __future__ import annotations

from itertools import islice

from streambatch.connectors.files.followed import Followed


class ReadingOrder:
    """The files to be read: fairly by turns, but some first and one by one.

    Files that were there at first, and what is known of a file when it is renamed or goes, come before the rest:
    records written one after the other are then read so, though they are in different files.
    """

    def __init__(self) -> None:
        self._queue: dict[Followed, None] = {}
        self._first: dict[Followed, int] = {}
        """How far each file must be read before the rest has its turn, oldest first."""

    def __bool__(self) -> bool:
        return bool(self._queue)

    def add(self, file: Followed) -> None:
        """Read from a file; one that is in the queue keeps its place."""
        self._queue[file] = None

    def drop(self, file: Followed) -> None:
        """Read from a file no longer."""
        self._queue.pop(file, None)

    def put_first(self, file: Followed) -> None:
        """Read all that a file holds now before the rest."""
        # Only what it holds by now: a file that keeps growing must not hold up the rest for ever.
        self._first.setdefault(file, file.size)

    def passed(self, file: Followed, position: int) -> None:
        """Take note of how far a file was read."""
        if position >= self._first.get(file, 0):
            self._first.pop(file, None)

    def restarted(self, file: Followed) -> None:
        """Let a file whose content is another one take turns with the rest."""
        self._first.pop(file, None)

    def next_round(self, files_max: int) -> list[Followed]:
        """Return the files to read from now."""
        while self._first:
            oldest = next(iter(self._first))
            if oldest in self._queue:
                return [oldest]
            del self._first[oldest]
        return list(islice(self._queue, files_max))
