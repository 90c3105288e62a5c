"""The segments of one spool on disk: `<first position>.seg`, written at the end of the last, read, removed from the
first on.

What `append` returned for is durable. A process never writes on in a segment that it found: what it found is made
whole first, cut where its end is torn, put aside as `.corrupt` where something is damaged that had been safe.
Everything here blocks: call it in a thread. One thread at a time changes something; another one may read meanwhile.
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

from streambatch.spool.keys import SpoolKeys, write_whole
from streambatch.spool.parts import HEADER_BYTES, Head, Key, Part, Scan, block_at, block_bytes, header, scan
from streambatch.spool.request import Request
from streambatch.storage.files import sync_folder

_NAME = re.compile(r"(\d{20})\.seg(\.corrupt)?")


class SyncFailed(Exception):
    """An fsync failed: what was written since the last one may be lost, whatever the next one says."""


class Damaged(Exception):
    """A segment does not hold what was written."""


class Segment:
    """One file. first, end: the positions it holds. length: bytes of it that count, all durable.

    records_end: where its last record ends, 0 without any. Blocks without records may follow, which no ack passes.
    is_doomed: it needs no reading any more, and its file may be gone.
    """

    __slots__ = ("end", "first", "is_aside", "is_doomed", "keys", "length", "path", "records", "records_end")

    def __init__(self, path: Path, first: int, *, is_aside: bool = False) -> None:
        self.path, self.first, self.end = path, first, first
        self.length = self.records = self.records_end = 0
        self.keys: list[tuple[float, Key]] = []
        self.is_aside, self.is_doomed = is_aside, False


class Placed(NamedTuple):
    """Where a part came to lie: its segment, where its block ends there, and the position where its records begin."""

    segment: Segment
    next_offset: int
    base: int


class Found(NamedTuple):
    """What is in a spool when it is opened: records acked by nobody, known to have been received or not known."""

    known: int
    new: int


class SpoolFolder:
    """See the module. position: where the next record begins."""

    def __init__(self, folder: Path, segment_bytes: int, keys: SpoolKeys) -> None:
        self.segments: list[Segment] = []
        self.position = self.corrupt = 0
        self._folder, self._segment_bytes, self._keys = folder, segment_bytes, keys
        self._active: Segment | None = None
        self._fd = self._reading_fd = -1
        self._reading: Segment | None = None
        self._is_new = self._is_torn = False

    @property
    def size(self) -> int:
        """Bytes of all segments but those put aside."""
        return sum(segment.length for segment in tuple(self.segments) if not segment.is_aside)

    @property
    def records_end(self) -> int:
        """Where the last record ends, 0 without any."""
        return max((segment.records_end for segment in tuple(self.segments)), default=0)

    def open(self, acked: int, known_to: int) -> Found:
        """Make whole what is there. acked, known_to: see `scan`. Raises OSError."""
        _make(self._folder)
        self._keys.load()
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
                self._keys.add(key_at, key)
            # One without a whole request is gone; the next to be written gets its name, and must not be removed for it.
            if segment.records_end > acked if segment.is_aside else segment.length:
                self.segments.append(segment)
        return Found(known, new)

    def append(self, requests: Sequence[Request]) -> list[Placed]:
        """Write requests and make them durable, all or none. Raises OSError when nothing was written, SyncFailed."""
        segment = self._writable()
        length, end, records_end = segment.length, segment.end, segment.records_end
        placed = []
        self._is_torn = True
        try:
            for request in requests:
                offset = 0
                for at, part in enumerate(request.parts):
                    packed: Sequence[bytes] = part.packed
                    if not packed and request.staged is not None:
                        packed = (_staged(request.staged, part, offset),)
                        offset += part.body_bytes
                    more = at + 1 < len(request.parts)
                    head = header(part, packed, position=end, synced=segment.length, more=more)
                    write_whole(self._fd, b"".join((head, *packed)), length)
                    length += part.block_bytes
                    placed.append(Placed(segment, length, end))
                    end += part.size
                    records_end = end if part.count else records_end
        except OSError:
            self._cut_back(segment)
            raise
        self._sync()
        self._is_torn = False
        now_durable = [part for request in requests for part in request.parts]
        segment.keys += [(r.parts[-1].arrived_at, r.key) for r in requests if r.key is not None]
        segment.records += sum(part.count for part in now_durable)
        segment.end, segment.records_end = end, records_end
        self.position = end
        segment.length = length  # last: who reads meanwhile reads as far as this
        return placed

    def remove(self, acked: int, now: float) -> None:
        """Remove what is removable, the keys kept. now: wall seconds. Raises OSError."""
        doomed = self.removable(acked)
        if not doomed:
            return
        self._keys.save([entry for segment in doomed for entry in segment.keys], now)
        for segment in doomed:
            segment.is_doomed = True
            if not segment.is_aside:
                if segment.end > acked:
                    # Should a crash bring back those before it without it, what is missing would pass for damage.
                    sync_folder(self._folder)
                segment.path.unlink(missing_ok=True)
            self.segments.remove(segment)

    def removable(self, acked: int) -> list[Segment]:
        """Return the segments before the first record that is not acked, but for the one that is written."""
        done = takewhile(lambda segment: segment.records_end <= acked, tuple(self.segments))
        return [segment for segment in done if segment is not self._active]

    def is_done(self, acked: int) -> bool:
        """Tell whether all records are acked, and something is in the segment that is written."""
        return self._active is not None and self._active.length > 0 and self.records_end <= acked

    def roll(self) -> None:
        """Write no more to the segment that was written until now."""
        if self._active is not None:
            self._active = None
            os.close(self._fd)
            self._fd = -1

    def put_aside(self, segment: Segment) -> None:
        """Rename a damaged segment, for people to look at. Raises OSError."""
        if segment is self._active:
            self.roll()
        path = segment.path.with_name(segment.path.name + ".corrupt")
        os.rename(segment.path, path)
        sync_folder(self._folder)
        segment.path, segment.is_aside = path, True
        self.corrupt += 1

    def read(self, segment: Segment, offset: int, limit: int, size: int) -> tuple[memoryview, list[Head]]:
        """Return whole blocks from an offset on: one, or as many as have `size` bytes. Raises OSError, Damaged.

        What is left of a segment that was removed meanwhile is one block without records.
        """
        if self._reading is not segment:
            self.stop_reading()
            try:
                self._reading_fd = os.open(segment.path, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                if not segment.is_doomed:
                    raise
                return memoryview(b""), [_skipped(limit - offset, segment.end)]
            self._reading = segment
        data = os.pread(self._reading_fd, min(size, limit - offset), offset)
        length = block_bytes(memoryview(data), 0)
        if length is not None and len(data) < length <= limit - offset:
            data = os.pread(self._reading_fd, length, offset)
        view, at, heads = memoryview(data), 0, []
        while (head := block_at(view, at)) is not None:
            heads.append(head)
            at = head.next_offset
        if not heads:
            raise Damaged(str(segment.path))
        return view, heads

    def stop_reading(self) -> None:
        """Close what was read last."""
        if self._reading is not None:
            os.close(self._reading_fd)
        self._reading, self._reading_fd = None, -1

    def close(self) -> None:
        """Close every file."""
        self.roll()
        self.stop_reading()

    def _listed(self) -> list[Segment]:
        matches = [(_NAME.fullmatch(name), name) for name in os.listdir(self._folder)]
        found = [(int(match[1]), not match[2], name) for match, name in matches if match]
        return [Segment(self._folder / name, first, is_aside=not plain) for first, plain, name in sorted(found)]

    def _recover(self, segment: Segment, acked: int, known_to: int, ends_at: int | None) -> Scan:
        size = segment.path.stat().st_size
        found = _scanned(segment, size, acked, known_to, ends_at)
        segment.length, segment.end, segment.keys = found.length, found.end, found.keys
        segment.records_end = found.records_end
        segment.records = found.records[0]
        self.position = max(self.position, found.end)
        if found.is_damaged and not segment.is_aside:
            self.put_aside(segment)
        if segment.is_aside and ends_at is None:
            self.position = max(self.position, segment.first + size)  # past whatever positions it had
        if segment.is_aside:
            return found
        if found.length == 0:
            segment.path.unlink()
        elif found.is_torn:
            _truncate(segment.path, found.length)
        return found

    def _writable(self) -> Segment:
        """Return the segment to write to, a new one if the last is full."""
        if self._active is not None and self._active.length >= self._segment_bytes:
            self.roll()
        if self._active is None:
            path = self._folder / f"{self.position:020}.seg"
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
            self._active = Segment(path, self.position)
            self.segments.append(self._active)
            self._is_new = True
        elif self._is_torn:
            os.ftruncate(self._fd, self._active.length)
        return self._active

    def _cut_back(self, segment: Segment) -> None:
        try:
            os.ftruncate(self._fd, segment.length)
        except OSError:
            return  # tried again before the next write
        self._is_torn = False

    def _sync(self) -> None:
        try:
            os.fsync(self._fd)
            if self._is_new:
                sync_folder(self._folder)
                self._is_new = False
        except OSError as error:
            raise SyncFailed(error.strerror or str(error)) from error


def _scanned(segment: Segment, size: int, acked: int, known_to: int, ends_at: int | None) -> Scan:
    if size == 0:
        return scan(memoryview(b""), segment.first, acked=acked, known_to=known_to, ends_at=ends_at)
    with (
        open(segment.path, "rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
        memoryview(mapped) as data,
    ):
        return scan(data, segment.first, acked=acked, known_to=known_to, ends_at=ends_at)


def _skipped(length: int, end: int) -> Head:
    """Return what stands for so many bytes that end at a position and hold no records to read."""
    return Head(0, length - HEADER_BYTES, end, 0, 0, 0, 0, 0.0, 0)


def _staged(fd: int, part: Part, offset: int) -> bytes:
    data = os.pread(fd, part.body_bytes, offset)
    if len(data) < part.body_bytes:
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
