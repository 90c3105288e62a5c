"""An output in segments: one open file that is appended to, and closed ones that never change again.

`scores.jsonl.open` becomes `scores-00000001.jsonl` once it is large or old enough: what it holds is synced, it is
renamed, and the name is synced, in this order. Numbers go on from the files that are there. Without a rotation there
is one file, under its own name.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated

import anyio
from anyio import to_thread
from pydantic import Field

from streambatch.clock import Clock
from streambatch.errors import OptionError, SinkError
from streambatch.files import AppendFile
from streambatch.options import options
from streambatch.units import Duration, Size

_COMPRESSED = (".gz", ".zst")


@options
class Rotation:
    """When the open segment of an output is closed and the next one begun."""

    max_bytes: Annotated[Size, Field(gt=0)] | None = None
    """Close a segment before it grows over this size. What is written at once stays together, whatever its size."""
    max_age: Annotated[Duration, Field(gt=0)] | None = None
    """Close a segment so long after its first record was written."""

    def __post_init__(self) -> None:
        if self.max_bytes is None and self.max_age is None:
            raise OptionError("max_bytes", "neither max_bytes nor max_age", "one of them, or both")


class SegmentNames:
    """How the files of an output are called."""

    def __init__(self, path: Path) -> None:
        parts = path.name.removesuffix(path.suffix) if path.suffix in _COMPRESSED else path.name
        stem = Path(parts).stem or path.name
        ending = path.name[len(stem) :]
        self._path, self._stem, self._ending = path, stem, ending
        self._pattern = re.compile(rf"{re.escape(stem)}-(\d{{8,}}){re.escape(ending)}")

    @property
    def open(self) -> Path:
        """The path of the segment that is written."""
        return self._path.with_name(f"{self._path.name}.open")

    def closed(self, number: int) -> Path:
        """Return the path of a segment that is complete; the first one is number 1."""
        return self._path.with_name(f"{self._stem}-{number:08}{self._ending}")

    def found(self) -> dict[int, Path]:
        """Return the closed segments that are there, in order of their numbers. Raises OSError."""
        if not self._path.parent.is_dir():
            return {}
        matches = [(self._pattern.fullmatch(name), name) for name in os.listdir(self._path.parent)]
        return dict(sorted((int(match[1]), self._path.with_name(name)) for match, name in matches if match))


class SegmentedFile:
    """Whole writes into the open segment, and its closing; see `AppendFile` for errors and cancellation.

    One task writes, and who closes a segment must let no write go on meanwhile; `sync` may come at any time.
    """

    def __init__(self, path: Path, owner: str, rotation: Rotation | None, clock: Clock) -> None:
        self.path, self.owner, self.rotation, self.clock = path, owner, rotation, clock
        self.names = SegmentNames(path)
        self.closed_length = 0
        self._file: AppendFile | None = None
        self._number = 0
        self._begun_at: float | None = None
        self._changing = anyio.Lock()

    @property
    def open_path(self) -> Path:
        """Where is written."""
        return self.path if self.rotation is None else self.names.open

    @property
    def is_open(self) -> bool:
        return self._number > 0

    @property
    def length(self) -> int:
        """Bytes in the open segment, or in the one file."""
        return self._file.length if self._file is not None else 0

    @property
    def has_records(self) -> bool:
        """Whether something belongs into the open segment, be it in the file or not yet."""
        return self._begun_at is not None

    @property
    def file(self) -> AppendFile:
        """The open segment, claimed. Raises SinkError when there is none."""
        if self._file is None:
            raise SinkError(self.owner, f"{self.path} is not open")
        return self._file

    async def open(self) -> dict[int, Path]:
        """Claim the open segment, which may hold something. Returns the closed ones that are there, by number."""
        found: dict[int, Path] = {}
        if self.rotation is not None:
            try:
                found = await to_thread.run_sync(self.names.found)
            except OSError as error:
                raise SinkError(self.owner, f"{error.filename}: {error.strerror}") from error
        await self._begin()
        self._number = max(found, default=0) + 1
        return found

    async def remove(self, found: dict[int, Path]) -> None:
        """Remove closed segments and start again at number 1."""
        for path in found.values():
            await self._remove(path)
        self._number = 1

    def is_due(self, size: int = 0) -> bool:
        """Tell whether the segment is to be closed before `size` more bytes are written to it."""
        if self.rotation is None or self._file is None or self._begun_at is None:
            return False
        if self.rotation.max_bytes is not None and self.length + size > self.rotation.max_bytes:
            return True
        return self.rotation.max_age is not None and self.clock.monotonic() - self._begun_at >= self.rotation.max_age

    def begin_record(self) -> None:
        """Learn that the segment has records now: its age counts from the first."""
        if self._begun_at is None:
            self._begun_at = self.clock.monotonic()

    async def write(self, payload: bytes) -> None:
        """Append all of `payload` to the open segment, or, when that fails, nothing of it."""
        if self._file is None and self.is_open:
            await self._begin()
        await self.file.write(payload)

    async def sync(self) -> int:
        """Make what was written durable. Returns the bytes of all segments that this wrote."""
        async with self._changing:
            if self._file is None:
                return self.closed_length
            return self.closed_length + await self._file.sync()

    async def roll(self) -> None:
        """Close the segment under its number, durably, and claim the next one. May be called again if it failed."""
        with anyio.CancelScope(shield=True):
            async with self._changing:
                if self._file is not None:
                    await self._close_segment()
                await self._begin()

    async def finish(self) -> None:
        """Close the segment if it has records. Without rotation, only sync."""
        if self.rotation is None:
            await self.sync()
            return
        with anyio.CancelScope(shield=True):
            async with self._changing:
                if self.has_records:
                    await self._close_segment()

    async def close(self) -> None:
        """Give the file back; an empty open segment is removed. Does nothing when it is not open."""
        file, self._file, self._number = self._file, None, 0
        self._begun_at = None
        if file is None:
            return
        try:
            if self.rotation is not None and file.length == 0:
                await self._remove(file.path)
        finally:
            await file.close()

    async def _begin(self) -> None:
        file = AppendFile(self.open_path, self.owner)
        await file.open()
        self._file, self._begun_at = file, None

    async def _close_segment(self) -> None:
        file = self.file
        await file.sync()
        await file.rename(self.names.closed(self._number))
        self.closed_length += file.length
        self._number += 1
        self._file, self._begun_at = None, None
        await file.close()

    async def _remove(self, path: Path) -> None:
        try:
            await anyio.Path(path).unlink(missing_ok=True)
        except OSError as error:
            raise SinkError(self.owner, f"{path}: {error.strerror}") from error
