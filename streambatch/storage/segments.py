"""An output in segments: one open file that is appended to, and closed ones that never change again.

`scores.jsonl.open` becomes `scores-00000001.jsonl` once it is large or old enough: what it holds is synced, it is
renamed, and the name is synced, in this order. Numbers go on from the files that are there. Without a rotation there
is one file, under its own name.

An output that is restored has a mark in the last checkpoint, and after a crash is taken back to it. So that a closed
segment never changes, it gets its name only when a checkpoint holds all of it; and so that nobody's file is taken for
it, the next one is begun only when a checkpoint says that it has its name.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated

import anyio
import msgspec
from anyio import to_thread
from pydantic import Field

from streambatch.core.checkpoints import CommitMark, OutputMark, resolved_early
from streambatch.core.clock import Clock
from streambatch.core.errors import ChangedOutputError, OptionError, SinkError
from streambatch.core.options import options
from streambatch.core.units import Duration, Size
from streambatch.storage.files import AppendFile, disk_error, sync_folder

_COMPRESSED = (".gz", ".zst")
_WHAT_TO_DO = (
    "put back what was there, be it the file or its path, or move the output away and forget its state with "
    "`streambatch state reset`"
)


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


def first_written(path: Path, rotation: Rotation | None) -> Path:
    """Return the first file that an output leaves: its own path, or that of its first closed segment."""
    return path if rotation is None else SegmentNames(path).closed(1)


@resolved_early
class SegmentMark(msgspec.Struct, frozen=True, kw_only=True):
    """How far an output goes, as a checkpoint keeps it.

    segment: number of the open segment; 1 where there is one file. length: its bytes, as far as they hold records.
    layout: how they lie in it. is_closing: the segment is complete, and gets its name next. is_replacing: the segments
    that are closed belong to an output of before, and are removed next.
    """

    segment: int
    length: int
    layout: str
    is_closing: bool = False
    is_replacing: bool = False


class SegmentedFile:
    """Whole writes into the open segment, and its closing; see `AppendFile` for errors and cancellation.

    One task writes, opens and closes; `sync` may come at any time, and waits for nothing but the disk.

    layout: how records lie in the file; it can only be gone on with in the same. is_whole_only: whether an open segment
    holds no record that could be kept.
    """

    def __init__(self, path: Path, owner: str, rotation: Rotation | None, clock: Clock) -> None:
        self.path, self.owner, self.rotation, self.clock = path, owner, rotation, clock
        self.names = SegmentNames(path)
        self.layout, self.is_whole_only = "", False
        self.closed_length = 0
        self._file: AppendFile | None = None
        self._number = self._content = 0
        self._begun_at: float | None = None
        self._is_closing = self._is_unsaid = False
        self._saved: SegmentMark | None = None
        self._commit: CommitMark | None = None
        self._syncing = anyio.Lock()

    @property
    def open_path(self) -> Path:
        """Where is written."""
        return self.path if self.rotation is None else self.names.open

    @property
    def is_open(self) -> bool:
        return self._number > 0

    @property
    def is_claimed(self) -> bool:
        """Whether the open segment is there and this one's."""
        return self._file is not None

    @property
    def is_restored(self) -> bool:
        """Whether checkpoints are told how far the output goes."""
        return self._commit is not None

    @property
    def has_mark(self) -> bool:
        """Whether there is a mark to take the output back to."""
        return self._saved is not None

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

    def restore(self, mark: OutputMark | None, commit: CommitMark) -> None:
        """Learn, before the output is opened, what the last checkpoint says of it; see `RewindableOutput`."""
        self._commit = commit
        try:
            self._saved = None if mark is None else msgspec.convert(mark, SegmentMark)
        except msgspec.ValidationError as error:
            raise SinkError(self.owner, f"{self.path}: its mark {mark} is none ({error}); {_WHAT_TO_DO}") from error

    def mark(self) -> OutputMark:
        """Return how far the output goes with all records written until now."""
        length = self.length if self._is_closing else self._content
        return self._mark(max(self._number, 1), length, is_closing=self._is_closing)

    async def look(self) -> dict[int, Path]:
        """Find closed segments, by number, and claim the open one if it is there; nothing changes on disk."""
        found: dict[int, Path] = {}
        try:
            if self.rotation is not None:
                found = await to_thread.run_sync(self.names.found)
            is_there = await anyio.Path(self.open_path).exists()
        except OSError as error:
            raise disk_error(self.owner, error, self.open_path) from error
        if is_there:
            await self._claim()
        self._number = max(found, default=0) + 1
        return found

    async def open(self) -> dict[int, Path]:
        """Claim the open segment, which may hold something. Returns the closed ones that are there, by number."""
        found = await self.look()
        await self.begin()
        return found

    async def settle(self) -> None:
        """Have the output stored as it was found, before it is first changed."""
        await self._store(self._mark(self._number, self.length), is_first=True)

    async def replace(self, found: dict[int, Path]) -> None:
        """Empty the open segment, remove closed ones and start again at number 1."""
        await self._store(self._mark(1, 0, is_replacing=True), is_first=True)
        await self._clear(found)

    async def take_back(self) -> None:
        """Make the output what the mark says that it was restored with. What is closed stays, or is closed now.

        Raises ChangedOutputError when something of what the mark covers is missing.
        """
        mark = self._saved
        assert mark is not None
        found = await self.look()
        self._number = mark.segment
        if mark.is_replacing:
            await self._clear(found)
        elif later := [path for number, path in found.items() if number + (not mark.is_closing) > mark.segment]:
            raise self._mismatch(f"{later[-1]} is newer than its state")
        elif mark.is_closing:
            await self._take_back_closing(mark, found)
        elif mark.length and mark.layout != self.layout:
            raise self._mismatch(f"{self.open_path} was written as {mark.layout}, and is now to be {self.layout}")
        elif self._file is not None or mark.length:
            await self._cut_to(mark)

    def opened(self) -> None:
        """Learn that the output is open: the mark is no longer what to go back to."""
        self._saved = None

    async def begin(self) -> None:
        """Claim the open segment if that isn't done; it may be new."""
        if self._file is None:
            if self._is_unsaid:
                await self._store(self._mark(self._number, 0))
                self._is_unsaid = False
            await self._claim()

    def is_due(self, size: int = 0) -> bool:
        """Tell whether the segment is to be closed before `size` more bytes are written to it."""
        if self.rotation is None or self._file is None or self._begun_at is None:
            return False
        if self._is_closing or (self.rotation.max_bytes is not None and self.length + size > self.rotation.max_bytes):
            return True
        return self.rotation.max_age is not None and self.clock.monotonic() - self._begun_at >= self.rotation.max_age

    def begin_record(self) -> None:
        """Learn that all that was written to the segment is records: its age counts from the first."""
        if self._begun_at is None:
            self._begun_at = self.clock.monotonic()
        self._content = 0 if self.is_whole_only else self.length

    async def write(self, payload: bytes) -> None:
        """Append all of `payload` to the open segment, or, when that fails, nothing of it."""
        if self.is_open:
            await self.begin()
        await self.file.write(payload)

    async def sync(self) -> int:
        """Make what was written durable. Returns the bytes of all segments that this wrote."""
        async with self._syncing:
            if self._file is None:
                return self.closed_length
            return self.closed_length + await self._file.sync()

    async def roll(self) -> None:
        """Close the segment under its number, durably, and claim the next one. May be called again if it failed."""
        await self.close_segment()
        await self.begin()

    async def close_segment(self) -> None:
        """Close the segment under its number, durably; the next is begun by a write. Does nothing if there is none."""
        file = self._file
        if file is None:
            return
        if not self._is_closing:
            await self.sync()
            await self._store(self._mark(self._number, file.length, is_closing=True))
            self._is_closing = True
        async with self._syncing:
            await file.rename(self.names.closed(self._number))
            self.closed_length += file.length
            self._next_number()
            await file.close()

    async def finish(self) -> None:
        """Close the segment if it has records. Without rotation, only sync."""
        if self.rotation is None:
            await self.sync()
        elif self.has_records:
            await self.close_segment()

    async def close(self) -> None:
        """Give the file back; an empty open segment is removed. Does nothing when it is not open."""
        file, self._file, self._number = self._file, None, 0
        self._begun_at, self._content, self._is_closing, self._is_unsaid = None, 0, False, False
        if file is None:
            return
        try:
            if self.rotation is not None and file.length == 0:
                await self._remove(file.path)
        finally:
            await file.close()

    async def _claim(self) -> None:
        file = AppendFile(self.open_path, self.owner)
        await file.open()
        self._file, self._begun_at, self._content = file, None, 0

    async def _cut_to(self, mark: SegmentMark) -> None:
        """Cut the open segment to where the mark says that it ends."""
        file = self._file
        if file is None:
            raise self._mismatch(f"{self.open_path} is missing, and was stored with {mark.length} bytes")
        if file.length < mark.length and not file.is_device:
            raise self._mismatch(f"{file.path} has {file.length} bytes, and was stored with {mark.length}")
        await file.truncate(mark.length if not file.is_device else 0)

    async def _take_back_closing(self, mark: SegmentMark, found: dict[int, Path]) -> None:
        """Give a closed segment its name, unless it has it; its reader may have moved it away since."""
        closed = self.names.closed(mark.segment)
        try:
            if self._file is not None:
                await self._cut_to(mark)
                await self._file.rename(closed)
                await self._file.close()
            elif closed in found.values():
                if (length := (await anyio.Path(closed).stat()).st_size) < mark.length:
                    raise self._mismatch(f"{closed} has {length} bytes, and was stored with {mark.length}")
                await to_thread.run_sync(sync_folder, closed.parent)
        except OSError as error:
            raise disk_error(self.owner, error, closed) from error
        self._next_number()

    def _next_number(self) -> None:
        """Learn that the segment has its name."""
        self._number += 1
        self._file, self._begun_at, self._content, self._is_closing = None, None, 0, False
        self._is_unsaid = self._commit is not None

    async def _clear(self, found: dict[int, Path]) -> None:
        if self._file is not None:
            await self._file.truncate(0)
        for path in found.values():
            await self._remove(path)
        if found:
            try:
                await to_thread.run_sync(sync_folder, self.path.parent)
            except OSError as error:
                raise disk_error(self.owner, error, self.path.parent) from error
        self._number = 1

    def _mark(self, segment: int, length: int, *, is_closing: bool = False, is_replacing: bool = False) -> OutputMark:
        mark: OutputMark = msgspec.to_builtins(
            SegmentMark(
                segment=segment, length=length, layout=self.layout, is_closing=is_closing, is_replacing=is_replacing
            )
        )
        return mark

    async def _store(self, mark: OutputMark, *, is_first: bool = False) -> None:
        if self._commit is None:
            return
        await self._commit(mark)
        if is_first:
            self.restore(mark, self._commit)  # for when opening fails later on, and is tried again

    def _mismatch(self, problem: str) -> ChangedOutputError:
        return ChangedOutputError(self.owner, f"{problem}; {_WHAT_TO_DO}")

    async def _remove(self, path: Path) -> None:
        try:
            await anyio.Path(path).unlink(missing_ok=True)
        except OSError as error:
            raise disk_error(self.owner, error, path) from error
