"""The options of the sink that writes scores to a file or to segments of one, durably.

A file holds whole batches in order: a batch that can't be written leaves nothing behind, and one that was synced
survives a power cut. An output that is already there is only touched when the config says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from streambatch.codecs.containers import Compression
from streambatch.codecs.formats import OutputFormat, format_of
from streambatch.connectors.files.output import Output, OutputOptions
from streambatch.connectors.files.writer import FileWriter, IfExists
from streambatch.core.archive import OutputLayout
from streambatch.core.errors import OptionError
from streambatch.core.options import options
from streambatch.core.parts import Claim, Sink, Site
from streambatch.storage.segments import Rotation, SegmentNames, first_written

_PARQUET_ROTATION = Rotation(max_bytes=256 << 20, max_age=60.0)
"""A Parquet file can't be read before it is closed: no score waits longer than that."""


@options
class FileSink(Sink):
    """Append scores to one file, or to segments of one that are closed by size and age."""

    path: str
    """Where to write; folders are created. With `rotate`, `scores.jsonl` stands for `scores-00000001.jsonl` and so on,
    and for `scores.jsonl.open`, which is being written."""
    format: OutputFormat = "jsonl"
    """`jsonl`: one JSON object a line. `csv`: a header and one row a record. `arrow`: an IPC stream, readable while it
    is written. `parquet`: always in segments, each readable, and its records acked, once it is closed."""
    if_exists: IfExists = "error"
    """An output that is already there, and of which no state knows: stop, add to it (an unterminated last line is ended
    first), or empty it. With `rotate` that means all segments: new ones get the next numbers, or the old ones are
    removed. An output that can't be continued is never added to: `append` needs `rotate` where scores are compressed or
    columnar."""
    rotate: Rotation | None = None
    """Close a segment at this size or age and begin the next, such as `{ max_bytes = "256MiB", max_age = "1h" }`.
    Absent: one file; with parquet 256 MiB and 60 s."""
    compression: Compression | None = None
    """`none`, `gzip` or `zstd`. Default: `none`, with parquet `zstd`. Of text, each write becomes a gzip member or zstd
    frame of its own; arrow compresses the columns of each write and has no `gzip`; parquet compresses its pages."""
    name: str = "file"
    """Label of the sink in metrics and messages."""

    def __post_init__(self) -> None:
        if self.format == "arrow" and self.compression == "gzip":
            raise OptionError("compression", "'gzip' with the format arrow", "none or zstd")
        if self.if_exists == "append" and self.rotation is None and not self.output.is_plain:
            raise OptionError("if_exists", "'append' to one file that is compressed or arrow", "'append' with rotate")

    @property
    def rotation(self) -> Rotation | None:
        """When segments are closed; None with one file."""
        if not format_of(self.format).is_whole_only:
            return self.rotate
        if self.rotate is None:
            return _PARQUET_ROTATION
        if self.rotate.max_age is not None:
            return self.rotate
        return replace(self.rotate, max_age=_PARQUET_ROTATION.max_age)

    @property
    def output(self) -> OutputOptions:
        """What the output is, with defaults filled in."""
        compression = self.compression or ("zstd" if self.format == "parquet" else "none")
        return OutputOptions(
            path=Path(self.path),
            owner=self.name,
            format=self.format,
            compression=compression,
            rotation=self.rotation,
        )

    def build(self, site: Site) -> FileWriter:
        """Return a new writer, which takes the ages of segments from the site's clock."""
        return FileWriter(Output(self.output, site.clock), self.if_exists)

    def claims(self) -> Iterable[Claim]:
        """Return the file that it leaves, the first one of several."""
        return [Claim("output", "path", str(first_written(Path(self.path), self.rotation)))]

    def describe(self) -> Mapping[str, Any]:
        return {"name": self.name, "path": self.path, "format": self.format}

    def conflict(self) -> Path | None:
        existing = self.existing() if self.if_exists == "error" else []
        return existing[0] if existing else None

    def files(self) -> OutputLayout:
        return OutputLayout(Path(self.path), self.rotation is not None, self.format, self.compression or "none")

    def existing(self) -> list[Path]:
        """Return the files that are there of this output, closed segments first; empty ones don't count."""
        names = SegmentNames(Path(self.path))
        paths = [*names.found().values(), names.open] if self.rotation is not None else [Path(self.path)]
        return [path for path in paths if path.exists() and path.stat().st_size]
