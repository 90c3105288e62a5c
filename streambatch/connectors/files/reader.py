"""The running part of a file source: reads files to their end, or follows them.

A file is one partition, named by its path as first found. Reading resumes where an earlier run left a file, whatever
the file is called by now.
"""

from __future__ import annotations

from collections.abc import Mapping

from streambatch.connectors.files.follow import Follower
from streambatch.connectors.files.notes import KnownFile, NoteBook, known_files
from streambatch.connectors.files.options import ReadingOptions
from streambatch.connectors.files.reading import Reading
from streambatch.core.backlog import Backlog, no_files
from streambatch.core.checkpoints import PartitionNotes, SavedPartition
from streambatch.core.intake import Intake
from streambatch.core.parts import Reader


class FileReader(Reader):
    """Reads the files of one source, once."""

    is_resumable = True

    def __init__(self, options: ReadingOptions) -> None:
        self.name, self._options = options.source, options
        self._known: list[KnownFile] = []
        self._book = NoteBook()
        self._running: Follower | Reading | None = None

    def resume(self, saved: Mapping[str, SavedPartition]) -> None:
        """Take over how far each partition was acked. Files that are not among them are new."""
        self._known = known_files(saved)
        self._book = NoteBook(self._known)

    def notes(self) -> Mapping[str, PartitionNotes | None]:
        """Return what files are recognised by, for those where it changed since the last call.

        None is for a file that is gone and was read to its end.
        """
        return self._book.changed()

    async def run(self, intake: Intake) -> None:
        """Read the files to their end, or follow them until cancelled. A file that can't be read now is tried again.

        Raises SourceError that names the path, or the glob that nothing matches.
        """
        kind = Follower if self._options.follow else Reading
        self._running = kind(self._options, intake, self._known, self._book)
        await self._running.run()

    def backlog(self) -> Backlog:
        """Return how many bytes of files were not read, and how many files are in which state."""
        return self._running.backlog() if self._running is not None else Backlog(0, no_files())
