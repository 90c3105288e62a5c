"""The segments of one spool on disk: `<first position>.seg`, written at the end of the last, read, removed from the
first on.

What `append` returned for is durable. Everything here blocks: call it in a thread. One thread at a time changes
something; another one may read meanwhile. A segment is in one of these states:

| state | what happens | next |
| --- | --- | --- |
| none | the next block has no segment to go to: a file is created | active |
| active | it is full, or it is acked and the spool needs its room: `roll` | closed |
| active, closed | the process ends | found |
| found | at the next start it is whole, or its end is torn and is cut: that end was never said to be safe | closed |
| found | it holds no whole request | removed |
| found | something in it is damaged that had been durable: renamed to `.corrupt` | aside |
| active, closed | a read finds damage: `put_aside`, renamed to `.corrupt` | aside |
| closed | all its records are acked: its keys are saved and its file goes | removed |
| aside | all its records are acked: it is forgotten, and the file stays for people to look at | removed |

A process never goes on writing in a segment that it found, since what lies after its last whole request is unknown.
"""

from __future__ import annotations

import errno
import mmap
import os
import re
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple

from streambatch.spool.blocks import (
    HEADER_BYTES,
    BlockHeader,
    NewBlock,
    RequestKey,
    SegmentScan,
    block_at,
    block_bytes,
    pack_header,
    scan_segment,
)
from streambatch.spool.keys import SpoolKeys, write_whole
from streambatch.spool.request import SpoolRequest
from streambatch.storage.files import sync_folder

_NAME = re.compile(r"(\d{20})\.seg(\.corrupt)?")


class SpoolSyncError(Exception):
    """An fsync failed: what was written since the last one may be lost, even if the next one succeeds."""


class SegmentDamaged(Exception):
    """A segment does not hold what was written."""


class SpoolSegment:
    """One file, with its state as far as it is known."""

    __slots__ = ("end", "first", "is_aside", "is_doomed", "keys", "length", "path", "records", "records_end")

    def __init__(self, path: Path, first: int, *, is_aside: bool = False) -> None:
        self.path = path
        self.first, self.end = first, first
        """The positions between which its records lie."""
        self.length = 0
        """Bytes of it that count, all durable."""
        self.records = 0
        self.records_end = 0
        """Where its last record ends; 0 without any. Blocks without records may follow, which no ack passes."""
        self.keys: list[tuple[float, RequestKey]] = []
        self.is_aside = is_aside
        """Whether it is damaged."""
        self.is_doomed = False
        """Whether it need not be read any more: its file may be gone."""


class BlockPlace(NamedTuple):
    """Where a part came to lie: its segment, where its block ends there, and the position where its records begin."""

    segment: SpoolSegment
    next_offset: int
    base: int


class RecoveredRecords(NamedTuple):
    """Records in a spool when it is opened that were not acked: known to have been received, or new to the state."""

    known: int
    new: int


class _ActiveSegment:
    """The segment that is written, and its file."""

    __slots__ = ("_fd", "_folder", "_is_named", "_is_torn", "segment")

    def __init__(self, folder: Path, position: int) -> None:
        path = folder / f"{position:020}.seg"
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        self._folder = folder
        self.segment = SpoolSegment(path, position)
        self._is_named = self._is_torn = False

    def begin(self) -> None:
        """Begin to write at the end of what is durable: cut what an earlier write left that failed."""
        if self._is_torn:
            os.ftruncate(self._fd, self.segment.length)
        # Until `sync`: a write that fails from here on may leave something behind.
        self._is_torn = True

    def write(self, data: bytes, offset: int) -> None:
        """Write after what was written since `begin`. Raises OSError."""
        write_whole(self._fd, data, offset)

    def cut_back(self) -> None:
        """Cut what was written since `begin`."""
        try:
            os.ftruncate(self._fd, self.segment.length)
        except OSError:
            return  # tried again before the next write
        self._is_torn = False

    def sync(self) -> None:
        """Make durable what was written, and at first the file's name. Raises SpoolSyncError."""
        try:
            os.fsync(self._fd)
            if not self._is_named:
                sync_folder(self._folder)
                self._is_named = True
        except OSError as error:
            raise SpoolSyncError(error.strerror or str(error)) from error
        self._is_torn = False

    def close(self) -> None:
        os.close(self._fd)


class SegmentFile:
    """The segment that is read, whose file stays open from one read to the next."""

    def __init__(self) -> None:
        self._segment: SpoolSegment | None = None
        self._fd = -1

    def read(self, segment: SpoolSegment, offset: int, limit: int, size: int) -> tuple[memoryview, list[BlockHeader]]:
        """Return whole blocks from an offset on: one, or as many as have `size` bytes.

        Raises OSError, and SegmentDamaged. What is left of a segment that was removed meanwhile is one block without
        records.
        """
        try:
            fd = self._opened(segment)
        except FileNotFoundError:
            if not segment.is_doomed:
                raise
            return memoryview(b""), [_skipped(limit - offset, segment.end)]
        data = os.pread(fd, min(size, limit - offset), offset)
        length = block_bytes(memoryview(data), 0)
        # One block is always read whole, however long it is.
        if length is not None and len(data) < length <= limit - offset:
            data = os.pread(fd, length, offset)
        view, at, headers = memoryview(data), 0, []
        while (header := block_at(view, at)) is not None:
            headers.append(header)
            at = header.next_offset
        if not headers:
            raise SegmentDamaged(str(segment.path))
        return view, headers

    def close(self) -> None:
        """Close the segment that was read last."""
        if self._segment is not None:
            os.close(self._fd)
        self._segment, self._fd = None, -1

    def _opened(self, segment: SpoolSegment) -> int:
        if self._segment is not segment:
            self.close()
            self._fd = os.open(segment.path, os.O_RDONLY | os.O_CLOEXEC)
            self._segment = segment
        return self._fd


class SpoolFolder:
    """The segments of one spool; the keys in them; and where the next record begins."""

    def __init__(self, folder: Path, segment_bytes: int, keys: SpoolKeys) -> None:
        self.segments: list[SpoolSegment] = []
        self.position = 0
        """Where the next record begins."""
        self.corrupt = 0
        """Segments that were put aside, or are missing, since the start."""
        self.keys = keys
        self._folder, self._segment_bytes = folder, segment_bytes
        self._active: _ActiveSegment | None = None
        self._reading = SegmentFile()

    @property
    def size(self) -> int:
        """Bytes of all segments but those put aside."""
        # A copy of the list: another thread may change it meanwhile.
        return sum(segment.length for segment in tuple(self.segments) if not segment.is_aside)

    @property
    def records_end(self) -> int:
        """Where the last record ends, 0 without any."""
        return max((segment.records_end for segment in tuple(self.segments)), default=0)

    def open(self, acked: int, known_to: int) -> RecoveredRecords:
        """Read the segments on disk, and repair them. acked, known_to: see `scan_segment`. Raises OSError."""
        _make(self._folder)
        self.keys.load()
        listed = self._listed()
        known_to = max(acked, known_to)
        self.position = known_to
        if not listed and known_to > acked:
            self.corrupt += 1  # what was received and not acked is gone, and its segments with it
        known = new = 0
        for at, segment in enumerate(listed):
            ends_at = listed[at + 1].first if at + 1 < len(listed) else None
            found = self._recover(segment, acked, known_to, ends_at)
            known += found.records[0] - found.records[1]
            new += found.records[1]
            for key_at, key in found.keys:
                self.keys.add(key_at, key)
            # One without a whole request is gone; the next to be written gets its name, and must not be removed for it.
            if segment.records_end > acked if segment.is_aside else segment.length:
                self.segments.append(segment)
        return RecoveredRecords(known, new)

    def append(self, requests: Sequence[SpoolRequest]) -> list[BlockPlace]:
        """Write requests and make them durable, all or none.

        Raises OSError when nothing was written, SpoolSyncError when that is not known.
        """
        active = self._writable()
        segment = active.segment
        length, end, records_end = segment.length, segment.end, segment.records_end
        places = []
        active.begin()
        try:
            for request in requests:
                staged_offset = 0
                for at, block in enumerate(request.blocks):
                    packed: Sequence[bytes] = block.packed
                    if not packed and request.staged is not None:
                        packed = (_staged(request.staged, block, staged_offset),)
                        staged_offset += block.body_bytes
                    more = at + 1 < len(request.blocks)
                    # `segment.length` and not `length`: what was durable before this group.
                    header = pack_header(block, packed, position=end, synced=segment.length, more=more)
                    active.write(b"".join((header, *packed)), length)
                    length += block.block_bytes
                    places.append(BlockPlace(segment, length, end))
                    end += block.size
                    records_end = end if block.count else records_end
        except OSError:
            active.cut_back()
            raise
        active.sync()
        segment.keys += [(r.blocks[-1].arrived_at, r.key) for r in requests if r.key is not None]
        segment.records += sum(block.count for request in requests for block in request.blocks)
        segment.end, segment.records_end = end, records_end
        self.position = end
        segment.length = length  # last: a read that goes on meanwhile ends there
        return places

    def remove(self, acked: int, now: float) -> None:
        """Remove removable segments, and keep their keys. now: wall seconds. Raises OSError."""
        doomed = self.removable(acked)
        if not doomed:
            return
        # First: a key must be in a key file before the segment that holds it is gone.
        self.keys.save([entry for segment in doomed for entry in segment.keys], now)
        for segment in doomed:
            segment.is_doomed = True
            if not segment.is_aside:
                if segment.end > acked:
                    # Should a crash bring back those before it without it, what is missing would pass for damage.
                    sync_folder(self._folder)
                segment.path.unlink(missing_ok=True)
            self.segments.remove(segment)

    def removable(self, acked: int) -> list[SpoolSegment]:
        """Return the segments before the first record that is not acked, but for the one that is written."""
        done = takewhile(lambda segment: segment.records_end <= acked, tuple(self.segments))
        active = self._active.segment if self._active is not None else None
        return [segment for segment in done if segment is not active]

    def is_done(self, acked: int) -> bool:
        """Whether all records are acked, and something is in the active segment."""
        return self._active is not None and self._active.segment.length > 0 and self.records_end <= acked

    def roll(self) -> None:
        """Close the active segment; the next block begins another one."""
        active, self._active = self._active, None
        if active is not None:
            active.close()

    def put_aside(self, segment: SpoolSegment) -> None:
        """Rename a damaged segment, for people to look at. Raises OSError."""
        if self._active is not None and segment is self._active.segment:
            self.roll()
        path = segment.path.with_name(segment.path.name + ".corrupt")
        os.rename(segment.path, path)
        sync_folder(self._folder)
        segment.path, segment.is_aside = path, True
        self.corrupt += 1

    def read(self, segment: SpoolSegment, offset: int, limit: int, size: int) -> tuple[memoryview, list[BlockHeader]]:
        """Return whole blocks from an offset on; see `SegmentFile.read`."""
        return self._reading.read(segment, offset, limit, size)

    def close(self) -> None:
        """Close every file."""
        self.roll()
        self._reading.close()

    def _listed(self) -> list[SpoolSegment]:
        matches = [(_NAME.fullmatch(name), name) for name in os.listdir(self._folder)]
        found = [(int(match[1]), not match[2], name) for match, name in matches if match]
        return [SpoolSegment(self._folder / name, first, is_aside=not plain) for first, plain, name in sorted(found)]

    def _recover(self, segment: SpoolSegment, acked: int, known_to: int, ends_at: int | None) -> SegmentScan:
        size = segment.path.stat().st_size
        found = _scanned(segment, size, acked, known_to, ends_at)
        segment.length, segment.end, segment.keys = found.length, found.end, found.keys
        segment.records_end = found.records_end
        segment.records = found.records[0]
        self.position = max(self.position, found.end)
        if found.is_damaged and not segment.is_aside:
            self.put_aside(segment)
        if segment.is_aside and ends_at is None:
            self.position = max(self.position, segment.first + size)  # past any position that it may have held
        if segment.is_aside:
            return found
        if found.length == 0:
            segment.path.unlink()
        elif found.is_torn:
            _truncate(segment.path, found.length)
        return found

    def _writable(self) -> _ActiveSegment:
        """Return the active segment, a new one if the last is full."""
        if self._active is not None and self._active.segment.length >= self._segment_bytes:
            self.roll()
        if self._active is None:
            self._active = _ActiveSegment(self._folder, self.position)
            self.segments.append(self._active.segment)
        return self._active


def _scanned(segment: SpoolSegment, size: int, acked: int, known_to: int, ends_at: int | None) -> SegmentScan:
    # An empty file can't be mapped.
    if size == 0:
        return scan_segment(memoryview(b""), segment.first, acked=acked, known_to=known_to, ends_at=ends_at)
    with (
        open(segment.path, "rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
        memoryview(mapped) as data,
    ):
        return scan_segment(data, segment.first, acked=acked, known_to=known_to, ends_at=ends_at)


def _skipped(length: int, end: int) -> BlockHeader:
    """Return a header that stands for so many bytes, which end at a position and hold no records to read."""
    return BlockHeader(0, length - HEADER_BYTES, end, 0, 0, 0, 0, 0.0, 0)


def _staged(fd: int, block: NewBlock, offset: int) -> bytes:
    data = os.pread(fd, block.body_bytes, offset)
    if len(data) < block.body_bytes:
        raise OSError(errno.EIO, "a request that was being stored was cut off")
    return data


def _truncate(path: Path, length: int) -> None:
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        os.ftruncate(fd, length)
        os.fsync(fd)
    finally:
        os.close(fd)


def _make(folder: Path) -> None:
    """Create a folder and those above it, durably."""
    made = [each for each in (folder, *folder.parents) if not each.is_dir()]
    folder.mkdir(parents=True, exist_ok=True)
    for each in made:
        sync_folder(each.parent)
