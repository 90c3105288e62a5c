"""The sink that writes scores to a file or to segments of one, durably.

A file holds whole batches in order: a batch that can't be written leaves nothing behind, and one that was synced
survives a power cut. An output that is already there is only touched when the config says so.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Literal

from streambatch.codecs.containers import Compression, Format
from streambatch.connectors.files.output import Output
from streambatch.core.clock import Clock, SystemClock
from streambatch.core.durable import Commit, Mark
from streambatch.core.errors import HeldError, OptionError, SinkError
from streambatch.core.options import options
from streambatch.storage.segments import Rotation

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_PARQUET_ROTATION = Rotation(max_bytes=256 << 20, max_age=60.0)
"""A Parquet file can't be read before it is closed: no score waits longer than that."""


@options
class FileSink:
    """Append scores to one file, or to segments of one that are closed by size and age.

    Raises SinkError when a file can't be opened or written, HeldError when another process writes to it or it holds
    an output that `if_exists` doesn't allow to touch. A write that failed may be tried again.
    """

    path: str
    """Where to write; folders are created. With `rotate`, `scores.jsonl` stands for `scores-00000001.jsonl` and so on,
    and for `scores.jsonl.open`, which is being written."""
    format: Format = "jsonl"
    """`jsonl`: one JSON object a line. `csv`: a header and one row a record. `arrow`: an IPC stream, readable while it
    is written. `parquet`: always in segments, each readable, and its records acked, once it is closed."""
    if_exists: Literal["error", "append", "replace"] = "error"
    """An output that is already there, and of which no state knows: stop, add to it (an unterminated last line is ended
    first), or empty it. With `rotate` that means all segments: new ones get the next numbers, or the old ones are
    removed. What can't be gone on with is never added to: `append` needs `rotate` where scores are compressed or
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
        if self.if_exists == "append" and self.rotation is None and not self._is_plain:
            raise OptionError("if_exists", "'append' to one file that is compressed or arrow", "'append' with rotate")

    @property
    def rotation(self) -> Rotation | None:
        """When segments are closed; None with one file."""
        if self.format != "parquet":
            return self.rotate
        if self.rotate is None:
            return _PARQUET_ROTATION
        if self.rotate.max_age is not None:
            return self.rotate
        return replace(self.rotate, max_age=_PARQUET_ROTATION.max_age)

    @property
    def durable_writes(self) -> int:
        """How many of the writes since `open` are durable and readable."""
        return self._output.durable

    def timed_by(self, clock: Clock) -> None:
        """Take the ages of segments from this clock; to be called before `open`."""
        self._output.file.clock = clock

    def existing(self) -> list[Path]:
        """Return the files that are there of this output, closed segments first; empty ones don't count."""
        file = self._output.file
        paths = [*(file.names.found().values() if file.rotation is not None else ()), file.open_path]
        return [path for path in paths if path.exists() and path.stat().st_size]

    def restore(self, mark: Mark | None, commit: Commit) -> None:
        """Learn, before `open`, how far the output was acked; see `RewindableOutput`."""
        self._output.file.restore(mark, commit)

    def mark(self) -> Mark:
        """Return how far the output goes: the number of the open segment and its length in bytes, as far as it holds
        scores that can be kept, and whether it is being closed."""
        return self._output.file.mark()

    async def open(self, header: bytes) -> None:
        """Claim the output and start it with `header` if it is empty; or take it back to where it was acked to."""
        try:
            await self._start(header)
        except BaseException:
            await self._output.close()
            raise

    async def write(self, payload: bytes) -> None:
        """Add whole records; when it raises, none of them is there."""
        await self._output.write(payload)

    async def sync(self) -> int:
        """Make all that was written to files durable. Returns their length in bytes.

        What that doesn't make readable, see `durable_writes`, isn't durable.
        """
        return await self._output.sync()

    async def close_due(self) -> None:
        """Close the segment if it is old enough. For the task that writes."""
        await self._output.close_due()

    async def finish(self) -> None:
        """Complete the open file and close the last segment: nothing more will be written."""
        await self._output.finish()

    async def close(self) -> None:
        """Give the file back; does nothing when it is not open."""
        await self._output.close()

    @cached_property
    def _output(self) -> Output:
        return Output(
            Path(self.path),
            self.name,
            self.format,
            self.compression or ("zstd" if self.format == "parquet" else "none"),
            self.rotation,
            SystemClock(),
        )

    @property
    def _is_plain(self) -> bool:
        return self.format in ("jsonl", "csv") and self.compression in (None, "none")

    async def _start(self, header: bytes) -> None:
        output, file = self._output, self._output.file
        output.begin(header)
        if file.has_mark:
            await self._take_back()
        else:
            await self._settle(header)
        if not file.is_claimed:
            await file.begin()
            if file.length and self.if_exists == "error":
                raise self._held(file.file.path)
        if file.rotation is None and file.length == 0 and header:
            await output.write_header()
        file.opened()

    async def _take_back(self) -> None:
        file = self._output.file
        await file.take_back()
        if file.length:
            if self._is_plain:
                await file.file.end_line()
            await self._output.resume()

    async def _settle(self, header: bytes) -> None:
        """Do with what is there as the config says."""
        file = self._output.file
        closed = await file.look()
        there = list(closed.values()) + ([file.file.path] if file.length else [])
        if there and self.if_exists == "error":
            raise self._held(there[0])
        if there and self.if_exists == "replace":
            await file.replace(closed)
        elif file.length:
            await self._go_on(header)
        else:
            await file.settle()

    async def _go_on(self, header: bytes) -> None:
        """Go on after what a file holds."""
        file = self._output.file
        if not self._is_plain:
            raise HeldError(
                f"sink {self.name}: {file.file.path} is left from a run that was cut off, and there is no going on "
                'with it; move it away, or set if_exists to "replace"'
            )
        await self._check_columns(header)
        await file.settle()
        await file.file.end_line()
        file.begin_record()

    def _held(self, path: Path) -> HeldError:
        file = self._output.file
        holds = "is already there" if path != Path(self.path) else f"already holds {file.length} bytes"
        if file.is_restored:
            holds += ", an output without state beside it"
        return HeldError(f'sink {self.name}: {path} {holds}; move it away, or set if_exists to "append" or "replace"')

    async def _check_columns(self, header: bytes) -> None:
        file = self._output.file.file
        head = await file.head(len(_BYTE_ORDER_MARK) + 2 * len(header))
        head = head.removeprefix(_BYTE_ORDER_MARK).replace(b"\r\n", b"\n") + b"\n"
        if not head.startswith(header.replace(b"\r\n", b"\n")):
            found = head.split(b"\n")[0].decode(errors="replace")
            raise SinkError(
                self.name,
                f"{file.path} starts with {found!r}, and its columns are now {header.decode().rstrip()!r}; "
                'move it away, or set if_exists to "replace"',
            )
