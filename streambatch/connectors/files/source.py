"""The options of a source that reads files: to their end, one after the other, or followed as they grow."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import KW_ONLY, replace
from typing import Annotated, Any, Literal

from pydantic import Field

from streambatch.codecs.compression import unpacker
from streambatch.codecs.formats import STREAMS, TABLES, InputFormat
from streambatch.connectors.files.archive import FileArchive
from streambatch.connectors.files.globs import find_files, stats_of
from streambatch.connectors.files.options import ReadingOptions
from streambatch.connectors.files.reader import FileReader
from streambatch.core.errors import OptionError
from streambatch.core.options import options
from streambatch.core.parts import Claim, Site, Source
from streambatch.core.units import Duration, Size, format_size


@options
class FileSource(Source):
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
    format: InputFormat = "jsonl"
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
            found, allowed = (
                f"{self.format!r} with follow = true",
                f"{', '.join(STREAMS[:-1])} or {STREAMS[-1]} with follow",
            )
            raise OptionError("format", found, allowed)
        if not self.follow and self.read_from == "end":
            raise OptionError("read_from", "'end' with follow = false", "'beginning', or follow = true")

    @property
    def patterns(self) -> list[str]:
        """The paths and globs."""
        return [self.path] if isinstance(self.path, str) else self.path

    @property
    def is_finite(self) -> bool:
        return not self.follow

    def build(self, site: Site) -> FileReader:
        """Return a new reader of the files."""
        return FileReader(self._options)

    def claims(self) -> Iterable[Claim]:
        """Return the paths and globs: an output among them would be read again."""
        return [Claim("input", "path", pattern) for pattern in self.patterns]

    def where(self) -> str:
        """Return the patterns, and how many files match. Raises SourceError if none does, unless they are followed."""
        find = stats_of if self.follow else find_files
        paths = list(find(self.name, self.patterns))
        size = format_size(sum(os.path.getsize(path) for path in paths if os.path.exists(path)))
        followed = ", followed" if self.follow else ""
        return f"{', '.join(self.patterns)} ({len(paths)} files, {size}{followed})"

    def sample(self) -> FileSource:
        """Return the source of the files as they are now."""
        return replace(self, follow=False, read_from="beginning")

    def archive(self) -> FileArchive:
        """Return what finds the files again by their first bytes, whatever their names are by then."""
        return FileArchive(self._options)

    def reading(self) -> Mapping[str, Any]:
        """Return what decides how a file's bytes become records."""
        return {"format": self.format, "compression": self.compression}

    @property
    def _options(self) -> ReadingOptions:
        return ReadingOptions(
            source=self.name,
            patterns=self.patterns,
            format=self.format,
            compression=self.compression,
            max_record_bytes=self.max_record_bytes,
            follow=self.follow,
            from_end=self.read_from == "end",
            rotate_wait=self.rotate_wait,
        )
