"""An output in segments: one open file that is appended to, and closed ones that never change again.

`scores.jsonl.open` becomes `scores-00000001.jsonl` once it is large or old enough: what it holds is synced, it is
renamed, and the name is synced, in this order. Numbers go on from the files that are there. Without a rotation there
is one file, under its own name.

An output that is restored has a mark in the last checkpoint, and after a crash is taken back to it. A closed segment
never changes: it gets its name only when a checkpoint holds all of it. The next segment is begun only when a checkpoint
says that the one before has its name, so that another file is not taken for it. `segment_states` has the states.
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
from streambatch.storage.segment_states import Segment, SegmentState

_COMPRESSED = (".gz", ".zst")
_WHAT_TO_DO = (
    "put back the file that was there, or its path, or move the output away and forget its state with "
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
        # Eight digits or more: numbers go on after 99999999.
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
    """How far an output goes, as a checkpoint keeps it."""

    segment: int
    """Number of the open segment; 1 where there is one file."""
    length: int
    """Its bytes, as far as they hold records."""
    layout: str
    """How records lie in it."""
    is_closing: bool = False
    """The segment is complete, and gets its name next."""
    is_replacing: bool = False
    """The closed segments belong to an earlier output, and are removed next."""


class SegmentedFile:
    """Whole writes into the open segment, and its closing; see `AppendFile` for errors and cancellation.

    One task writes, opens and closes; `sync` may come at any time, and waits for nothing but the disk.
    """

    def __init__(self, path: Path, owner: str, rotation: Rotation | None, clock: Clock) -> None:
        self.path, self.owner, self.rotation, self._clock = path, owner, rotation, clock
        self.layout = ""
        """How records lie in the file: it can only be continued in the same layout."""
        self.is_whole_only = False
        """Whether an open segment holds no record that could be kept."""
        self._closed_length = 0
        self._segment = Segment()
        self._saved: SegmentMark | None = None
        self._commit: CommitMark | None = None
        self._syncing = anyio.Lock()

    @property
    def names(self) -> SegmentNames:
        return SegmentNames(self.path)

    @property
    def open_path(self) -> Path:
        """The path of the open segment, or of the one file."""
        return self.path if self.rotation is None else self.names.open

    @property
    def is_open(self) -> bool:
        return self._segment.state is not SegmentState.SHUT

    @property
    def is_claimed(self) -> bool:
        """Whether the open segment is there and this one's."""
        return self._segment.file is not None

    @property
    def is_restored(self) -> bool:
        """Whether checkpoints store how far the output goes."""
        return self._commit is not None

    @property
    def has_mark(self) -> bool:
        """Whether there is a mark to take the output back to."""
        return self._saved is not None

    @property
    def length(self) -> int:
        """Bytes in the open segment, or in the one file."""
        return self._segment.file.length if self._segment.file is not None else 0

    @property
    def has_records(self) -> bool:
        """Whether records belong into the open segment, in its file or about to be."""
        return self._segment.begun_at is not None

    @property
    def file(self) -> AppendFile:
        """The open segment, claimed. Raises SinkError when there is none."""
        if self._segment.file is None:
            raise SinkError(self.owner, f"{self.path} is not open")
        return self._segment.file

    def restore(self, mark: OutputMark | None, commit: CommitMark) -> None:
        """Take over, before the output is opened, what the last checkpoint says of it."""
        self._commit = commit
        try:
            self._saved = None if mark is None else msgspec.convert(mark, SegmentMark)
        except msgspec.ValidationError as error:
            raise SinkError(self.owner, f"{self.path}: its mark {mark} is none ({error}); {_WHAT_TO_DO}") from error

    def mark(self) -> OutputMark:
        """Return how far the output goes with all records written until now."""
        segment, is_closing = self._segment, self._segment.state is SegmentState.CLOSING
        length = self.length if is_closing else segment.content
        return self._mark(max(segment.number, 1), length, is_closing=is_closing)

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
        elif self._segment.state is SegmentState.SHUT:
            self._segment.become(SegmentState.AWAITED)
        self._segment.number = max(found, default=0) + 1
        return found

    async def open(self) -> dict[int, Path]:
        """Claim the open segment, which may hold something. Returns the closed ones that are there, by number."""
        found = await self.look()
        await self.begin()
        return found

    async def settle(self) -> None:
        """Store the output as it was found, before it is first changed."""
        await self._store(self._mark(self._segment.number, self.length), is_first=True)

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
        self._segment.number = mark.segment
        if mark.is_replacing:
            await self._clear(found)
        # A segment that is closing may have its name already.
        elif later := [path for number, path in found.items() if number + (not mark.is_closing) > mark.segment]:
            raise self._mismatch(f"{later[-1]} is newer than its state")
        elif mark.is_closing:
            await self._take_back_closing(mark, found)
        elif mark.length and mark.layout != self.layout:
            raise self._mismatch(f"{self.open_path} was written as {mark.layout}, and is now to be {self.layout}")
        elif self._segment.file is not None or mark.length:
            await self._cut_to(mark)

    def opened(self) -> None:
        """Forget the mark: the output is open, and no longer goes back to it."""
        self._saved = None

    async def begin(self) -> None:
        """Claim the open segment if that isn't done; it may be new."""
        if self._segment.file is None:
            if self._segment.state is SegmentState.UNSAID:
                await self._store(self._mark(self._segment.number, 0))
                self._segment.become(SegmentState.AWAITED)
            await self._claim()

    def is_due(self, size: int = 0) -> bool:
        """Whether the segment is to be closed before `size` more bytes are written to it."""
        begun_at, state = self._segment.begun_at, self._segment.state
        if self.rotation is None or self._segment.file is None or begun_at is None:
            return False
        if state is SegmentState.CLOSING or (
            self.rotation.max_bytes is not None and self.length + size > self.rotation.max_bytes
        ):
            return True
        return self.rotation.max_age is not None and self._clock.monotonic() - begun_at >= self.rotation.max_age

    def begin_record(self) -> None:
        """Count all that was written to the segment as records: its age counts from the first."""
        segment = self._segment
        if segment.begun_at is None:
            segment.begun_at = self._clock.monotonic()
        if segment.state is SegmentState.EMPTY:
            segment.become(SegmentState.FILLING)
        segment.content = 0 if self.is_whole_only else self.length

    async def write(self, payload: bytes) -> None:
        """Append all of `payload` to the open segment, or, when that fails, nothing of it."""
        if self.is_open:
            await self.begin()
        await self.file.write(payload)

    async def sync(self) -> int:
        """Make what was written durable. Returns the bytes of all segments that this wrote."""
        async with self._syncing:
            if self._segment.file is None:
                return self._closed_length
            return self._closed_length + await self._segment.file.sync()

    async def roll(self) -> None:
        """Close the segment under its number, durably, and claim the next one. May be called again if it failed."""
        await self.close_segment()
        await self.begin()

    async def close_segment(self) -> None:
        """Close the segment under its number, durably; the next is begun by a write. Does nothing if there is none."""
        segment, file = self._segment, self._segment.file
        if file is None:
            return
        # In this order: a crash at any point leaves either an open segment, or one that the checkpoint can complete.
        if segment.state is not SegmentState.CLOSING:
            await self.sync()
            await self._store(self._mark(segment.number, file.length, is_closing=True))
            segment.become(SegmentState.CLOSING)
        async with self._syncing:
            await file.rename(self.names.closed(segment.number))
            self._closed_length += file.length
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
        file = self._segment.file
        if self._segment.state is not SegmentState.SHUT:
            self._segment.become(SegmentState.SHUT)
            self._segment = Segment()
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
        segment = self._segment
        segment.file, segment.begun_at, segment.content = file, None, 0
        if segment.state is not SegmentState.EMPTY:
            segment.become(SegmentState.EMPTY)

    async def _cut_to(self, mark: SegmentMark) -> None:
        """Cut the open segment to where the mark says that it ends."""
        file = self._segment.file
        if file is None:
            raise self._mismatch(f"{self.open_path} is missing, and was stored with {mark.length} bytes")
        if file.length < mark.length and not file.is_device:
            raise self._mismatch(f"{file.path} has {file.length} bytes, and was stored with {mark.length}")
        await file.truncate(mark.length if not file.is_device else 0)

    async def _take_back_closing(self, mark: SegmentMark, found: dict[int, Path]) -> None:
        """Give a closed segment its name, unless it has it; its reader may have moved it away since."""
        closed = self.names.closed(mark.segment)
        try:
            if self._segment.file is not None:
                await self._cut_to(mark)
                await self._segment.file.rename(closed)
                await self._segment.file.close()
            elif closed in found.values():
                if (length := (await anyio.Path(closed).stat()).st_size) < mark.length:
                    raise self._mismatch(f"{closed} has {length} bytes, and was stored with {mark.length}")
                # It has its name, which may not be durable: the process may have ended between rename and sync.
                await to_thread.run_sync(sync_folder, closed.parent)
        except OSError as error:
            raise disk_error(self.owner, error, closed) from error
        self._next_number()

    def _next_number(self) -> None:
        """Go on to the next segment: this one has its name."""
        segment = self._segment
        segment.number += 1
        segment.file, segment.begun_at, segment.content = None, None, 0
        state = SegmentState.AWAITED if self._commit is None else SegmentState.UNSAID
        if segment.state is not state:
            segment.become(state)

    async def _clear(self, found: dict[int, Path]) -> None:
        if self._segment.file is not None:
            await self._segment.file.truncate(0)
        for path in found.values():
            await self._remove(path)
        if found:
            try:
                await to_thread.run_sync(sync_folder, self.path.parent)
            except OSError as error:
                raise disk_error(self.owner, error, self.path.parent) from error
        self._segment.number = 1

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
