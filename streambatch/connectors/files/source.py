"""Records from files: read once, one file after the other, or followed as they grow.

A file is one partition, named by its path as first found. Files that end are read in blocks of a bounded size,
decompressed or not. What an earlier run has read, whatever it is called by now, is gone on with.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY
from functools import cached_property
from typing import Annotated, Literal

from pydantic import Field

from streambatch.codecs.compression import unpacker
from streambatch.codecs.formats import TABLES, framing_for_format
from streambatch.connectors.files.follow import Follower
from streambatch.connectors.files.notes import KnownFile, NoteBook, known_files
from streambatch.connectors.files.reading import Reading
from streambatch.core.backlog import Backlog, no_files
from streambatch.core.durable import Notes, Saved
from streambatch.core.errors import OptionError
from streambatch.core.intake import Intake
from streambatch.core.options import options
from streambatch.core.protocols import CountableSource
from streambatch.core.units import Duration, Size


class _Memory:
    """What a source knows of its partitions, from before and since. Not an option."""

    def __init__(self) -> None:
        self.known: list[KnownFile] = []
        self.book = NoteBook()
        self.at_work: CountableSource | None = None


@options
class FileSource:
    """Reads files as they are now, sorted by name, or follows them: what is appended, new ones, across rotation."""

    path: str | list[str]
    """A path or glob, or a list of them; `**` reaches into folders below."""
    _: KW_ONLY
    name: str = "file"
    follow: bool = False
    """Keep reading what is appended, and files that appear."""
    read_from: Literal["beginning", "end"] = "beginning"
    """Where to start in a followed file that was there, never seen, when the source started."""
    rotate_wait: Annotated[Duration, Field(ge=0)] = 5.0
    """A renamed or deleted file that grew no more for so long is done."""
    compression: Literal["auto", "none", "gzip", "zstd", "xz", "bz2"] = "auto"
    """How files are compressed; `auto` looks into each. A followed file can't be."""
    format: Literal["jsonl", "csv", "length_prefixed", "arrow", "parquet"] = "jsonl"
    """How the bytes of a file become records; `arrow` is an IPC stream or file. Arrow and Parquet can't be followed."""
    max_record_bytes: Annotated[Size, Field(ge=1)] = 1 << 20
    """A longer record is not scored: it becomes a dead letter."""

    def __post_init__(self) -> None:
        if not all(self.patterns) or not self.patterns:
            raise OptionError("path", repr(self.path), "a path or glob, or a list of at least one, none of them empty")
        if self.follow and self.compression not in ("auto", "none"):
            raise OptionError("compression", f"{self.compression!r} with follow = true", "'auto' or 'none' with follow")
        if self.compression != "auto":
            unpacker(self.compression)  # says now what is not installed
        if self.follow and self.format in TABLES:
            found, allowed = f"{self.format!r} with follow = true", "jsonl, csv or length_prefixed with follow"
            raise OptionError("format", found, allowed)
        if not self.follow and self.read_from == "end":
            raise OptionError("read_from", "'end' with follow = false", "'beginning', or follow = true")

    @property
    def patterns(self) -> list[str]:
        """Paths and globs, be it one or several."""
        return [self.path] if isinstance(self.path, str) else self.path

    @property
    def is_finite(self) -> bool:
        return not self.follow

    def resume(self, saved: Mapping[str, Saved]) -> None:
        """Learn, before `run`, how far each partition was acked; what is not named is new."""
        self._memory.known = known_files(saved)
        self._memory.book = NoteBook(self._memory.known)

    def notes(self) -> Mapping[str, Notes | None]:
        """Return what files are recognised by, of those of which it changed since the last call.

        None is for one that is gone and has been read.
        """
        return self._memory.book.changed()

    async def run(self, intake: Intake) -> None:
        """Read the files to their end, or follow them until cancelled; what can't be read now is tried again.

        Raises SourceError that names the path, or the glob that nothing matches.
        """
        if self.follow:
            await self._follow(intake)
        else:
            await self._read(intake)

    def backlog(self) -> Backlog:
        """Return what files hold that was not read; see backlog.CountableSource."""
        at_work = self._memory.at_work
        return at_work.backlog() if at_work is not None else Backlog(0, no_files())

    def acked(self, positions: Mapping[str, int]) -> None:
        """A file keeps what was read: there is nothing to do."""

    def revoke(self, partition: str) -> None:
        """A file is no other reader's: there is nothing to do."""

    @cached_property
    def _memory(self) -> _Memory:
        return _Memory()

    async def _follow(self, intake: Intake) -> None:
        follower = Follower(
            self.name,
            self.patterns,
            framing_for_format(self.format),
            intake,
            max_record_bytes=self.max_record_bytes,
            rotate_wait=self.rotate_wait,
            from_end=self.read_from == "end",
            known=self._memory.known,
            book=self._memory.book,
        )
        self._memory.at_work = follower
        await follower.run()

    async def _read(self, intake: Intake) -> None:
        reading = Reading(
            self.name,
            self.patterns,
            intake,
            format=self.format,
            compression=self.compression,
            max_record_bytes=self.max_record_bytes,
            known=self._memory.known,
            book=self._memory.book,
        )
        self._memory.at_work = reading
        await reading.run()
