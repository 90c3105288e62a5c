"""Follows files: looks at names and sizes, reads new bytes, and does what `Tail` decides.

One thread call looks at all files, one reads from many: idle files cost a stat each. Every handle belongs to the
follower; at most HANDLES_MAX stay open beyond those of files that no name leads to any more. A file that can't be read
at the moment holds up no other.
"""

import errno
import io
import os
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import anyio
from anyio import to_thread

from streambatch.codecs.formats import framing_for_format
from streambatch.connectors.files.followed import Followed, Progress
from streambatch.connectors.files.globs import FileStat
from streambatch.connectors.files.identity import HEAD_BYTES
from streambatch.connectors.files.notes import KnownFile, NoteBook
from streambatch.connectors.files.opening import Opening, open_file, opened_after, opened_at
from streambatch.connectors.files.options import ReadingOptions
from streambatch.connectors.files.outage import Outages
from streambatch.connectors.files.searching import find_again, is_gone, look_at, read_heads
from streambatch.connectors.files.tail import Tail
from streambatch.core.backlog import Backlog, FileState, no_files
from streambatch.core.events import FileEvent
from streambatch.core.feed import Feed
from streambatch.core.intake import Intake

LOOK_SECONDS = 0.05
"""Between two looks, unless they take long."""
LOOK_SECONDS_MAX = 1.0
LOOK_SHARE = 0.1
"""Of the time, at most, spent on looking."""
LOOKS_MIN = 3
"""Before a file of an earlier run that wasn't seen counts as gone."""
ROUND_BYTES = 1 << 20
"""Read from all files of a round together, the least share of one apart."""
SHARE_BYTES_MIN = 64 << 10
FILES_PER_ROUND = 32
HANDLES_MAX = 64


class _Opened(NamedTuple):
    """A handle, and where to start if nothing was read from it yet."""

    handle: io.FileIO
    start: Opening | None


class _Read(NamedTuple):
    """Bytes read from a file, and its first bytes and length just after, so that a cut before them shows."""

    data: bytes
    head: bytes
    size: int


class Follower:
    """One run of a source that follows files."""

    def __init__(self, options: ReadingOptions, intake: Intake, known: Sequence[KnownFile], book: NoteBook) -> None:
        self._options, self._intake = options, intake
        self._framing = framing_for_format(options.format)
        self._tail = Tail(options.rotate_wait, from_end=options.from_end, known=known, book=book)
        self._outages = Outages(options.source, intake.observer)
        self._retry_at: dict[Followed, float] = {}
        """When each file that is held is tried again."""
        self._looks = 0
        self._stats: Mapping[str, FileStat] = {}
        self._handles: dict[Followed, io.FileIO] = {}
        self._feeds: dict[Followed, Feed] = {}
        self._partial: dict[Followed, int] = {}

    async def run(self) -> None:
        """Follow until cancelled. Raises SourceError for a plain path of what isn't a file."""
        now = self._intake.clock.monotonic
        try:
            while True:
                since = now()
                await self._look()
                self._retry(now())
                pause = min(max(LOOK_SECONDS, (now() - since) / LOOK_SHARE), LOOK_SECONDS_MAX)
                while self._tail.has_unread and now() < since + pause:
                    await self._read_round()
                for file in self._tail.due(now()):
                    await self._finish(file)
                await anyio.sleep(0 if self._tail.has_unread else max(0.0, since + pause - now()))
        finally:
            for feed in self._feeds.values():
                feed.release()
            for handle in self._handles.values():
                handle.close()

    def backlog(self) -> Backlog:
        """Return what files hold that was not read, by their lengths when they were last seen."""
        files, lag = no_files(), 0
        for file in self._tail.files.values():
            unread = max(0, file.size - file.offsets.read_to)
            lag += unread
            files[_state_of(file, unread)] += 1
        return Backlog(lag, files)

    async def _look(self) -> None:
        source, patterns = self._options.source, self._options.patterns
        look = await to_thread.run_sync(look_at, source, patterns, self._tail.files, self._handles)
        # At once: cancelled in one of the waits below, they would never be closed.
        self._handles |= look.found_again
        if not self._looks:
            # Before the first `see`: what was renamed is older than what matches, and is to be read first.
            await self._search()
        stats, heads, unseen = look.stats, None, dict(look.unseen)
        if stats != self._stats or self._tail.wants_look or look.found_again or not self._looks:
            if unrecognised := self._tail.unrecognised(stats):
                heads, unread = await to_thread.run_sync(read_heads, {path: stats[path] for path in unrecognised})
                unseen |= unread
                # Without its first bytes it would seem new, and be read from the beginning once more.
                left_out = set(unrecognised) - heads.keys()
                stats = {path: stat for path, stat in stats.items() if path not in left_out}
            self._stats = stats
            for file in self._tail.see(stats, look.held, self._intake.clock.monotonic(), heads, look.unsought):
                self._tell(file, "rotated")
        # Those that are held already wait for their next attempt.
        for file in look.failed.keys() - self._retry_at.keys():
            await self._hold(file, look.failed[file])
        self._outages.looked(unseen)
        self._looks += 1
        if self._looks == LOOKS_MIN and not unseen:
            await self._give_up()

    async def _search(self) -> None:
        """Resume files that were renamed since the last run, in their folders, to names that don't match."""
        known = self._tail.absent
        if not known:
            return
        for each, renamed in await to_thread.run_sync(find_again, known, self._options.source, self._options.patterns):
            file = self._tail.resume(each, renamed.path, renamed.stat, self._intake.clock.monotonic())
            self._handles[file] = renamed.handle
            self._tell(file, "rotated")

    async def _give_up(self) -> None:
        """Forget files that are gone, of which all that was received is acked."""
        known = [each for each in self._tail.absent if each.is_acked]
        for each in await to_thread.run_sync(is_gone, known) if known else ():
            self._tail.give_up(each.partition)

    def _retry(self, now: float) -> None:
        for file, at in list(self._retry_at.items()):
            if now >= at:
                del self._retry_at[file]
                self._tail.free(file)

    async def _read_round(self) -> None:
        files = await self._open(self._tail.next_round(FILES_PER_ROUND))
        if not files:
            return
        share = max(SHARE_BYTES_MIN, ROUND_BYTES // len(files))
        wanted = []
        for file in files:
            size = max(0, min(share, file.size - file.offsets.read_to))
            await self._feeds[file].room(size)
            wanted.append((self._handles[file], file.offsets.read_to, size))
        for file, read in zip(files, await to_thread.run_sync(_read_all, wanted), strict=True):
            if isinstance(read, OSError):
                await self._hold(file, read)
            else:
                self._outages.cured(file.partition)
                await self._take(file, read)
        self._bound_handles()
        self._bound_partial()

    async def _hold(self, file: Followed, error: OSError) -> None:
        """Try again later, with another handle if there can be one."""
        if feed := self._feeds.get(file):
            await feed.push(b"")  # gives back the room for a read that did not come
        if file.is_missing and error.errno == errno.ESTALE:
            # Its server has no such file any more, and no name leads to it: it will never be read.
            return await self._finish(file)
        # A missing file could not be opened again: its handle is all that leads to it.
        if not file.is_missing:
            self._close(file)
        seconds = self._outages.failed(file.partition, file.path, error)
        self._retry_at[file] = self._intake.clock.monotonic() + seconds
        self._tail.hold(file)

    async def _open(self, files: Sequence[Followed]) -> list[Followed]:
        """Open those that aren't. Returns the files that can be read from now."""
        closed = [file for file in files if file not in self._handles or file not in self._feeds]
        results = await to_thread.run_sync(self._open_all, closed) if closed else []
        # Every handle is taken over before anything is awaited: cancelled in between, the rest would never be closed.
        for file, result in zip(closed, results, strict=True):
            if isinstance(result, _Opened):
                self._opened(file, result)
            elif result is None:
                self._tail.set_aside(file)
        for file, result in zip(closed, results, strict=True):
            if isinstance(result, OSError):
                await self._hold(file, result)
        return [file for file in files if file in self._handles and file in self._feeds]

    def _open_all(self, files: Sequence[Followed]) -> list[_Opened | OSError | None]:
        return [self._open_one(file) for file in files]

    def _open_one(self, file: Followed) -> _Opened | OSError | None:
        handle = self._handles.get(file)
        try:
            handle = opened = handle or open_file(file.path, file.stat.id)
            if opened is None:
                return None
            return _Opened(opened, None if file in self._feeds else self._start(opened, file))
        except OSError as error:
            if handle is not None and file not in self._handles:
                handle.close()
            return error

    def _start(self, handle: io.FileIO, file: Followed) -> Opening:
        start = self._options.start_of(file.partition)
        if file.offsets.from_end:
            return opened_after(handle, file.offsets.start, self._framing, start)
        return opened_at(handle, file.offsets.read_to, self._framing, start)

    def _opened(self, file: Followed, opened: _Opened) -> None:
        self._handles[file] = opened.handle
        if opened.start is not None:
            self._feeds[file] = Feed(self._intake, opened.start.framer, self._options.source)
            if self._tail.started(file, opened.start.read_to):
                self._tell(file, "opened")

    async def _take(self, file: Followed, read: _Read) -> None:
        now = self._intake.clock.monotonic()
        known = self._tail.recognise(file, read.head, read.size)
        if known is not file:
            self._replace(known, file)
        elif self._tail.accept(file, read.head, read.size, len(read.data), now):
            # To the end: `_bound_handles` closes the first.
            self._handles[file] = self._handles.pop(file)
            feed = self._feeds[file]
            await feed.push(read.data)
            self._partial.pop(file, None)
            if feed.pending:
                self._partial[file] = feed.pending
        else:
            self._tell(file, "truncated")
            await self._end(file, cut_off=True)
            self._tail.restart(file, now)

    def _replace(self, known: Followed, copy: Followed) -> None:
        """Continue a known file in the handle of the copy that took its place."""
        self._feeds.pop(copy).release()
        self._close(known)
        self._retry_at.pop(known, None)
        self._handles[known] = self._handles.pop(copy)

    async def _finish(self, file: Followed) -> None:
        end = await self._end(file)
        self._close(file)
        self._retry_at.pop(file, None)
        self._outages.cured(file.partition)
        self._tell(file, self._tail.finish(file, end))

    async def _end(self, file: Followed, *, cut_off: bool = False) -> int | None:
        """Hand over what the end completes. Returns where the last record ended, if it was being read."""
        feed = self._feeds.pop(file, None)
        self._partial.pop(file, None)
        if feed is None:
            return None
        try:
            await feed.end(cut_off=cut_off)
            return feed.position
        finally:
            feed.release()

    def _bound_handles(self) -> None:
        """Close those read longest ago. What no name leads to could not be opened again."""
        surplus = len(self._handles) - HANDLES_MAX
        if surplus > 0:
            for file in [file for file in self._handles if not file.is_missing][:surplus]:
                self._close(file)

    def _bound_partial(self) -> None:
        """Forget the oldest partial records beyond an eighth of the budget; they are read again with their rest."""
        surplus = sum(self._partial.values()) - self._intake.memory.capacity // 8
        # The newest stays, or a record larger than the share would never be read whole.
        for file in list(self._partial)[:-1]:
            if surplus > 0 and not file.is_missing:
                surplus -= self._partial.pop(file)
                feed = self._feeds.pop(file)
                self._tail.reread(file, feed.position)
                feed.release()

    def _close(self, file: Followed) -> None:
        handle = self._handles.pop(file, None)
        if handle is not None:
            handle.close()

    def _tell(self, file: Followed, event: FileEvent) -> None:
        self._intake.observer.file_changed(self._options.source, file.path, event)


def _state_of(file: Followed, unread: int) -> FileState:
    if file.progress is Progress.HELD:
        return "held"
    if unread:
        return "reading" if file.offsets.was_opened else "waiting"
    return "done" if file.offsets.is_done else "idle"


def _read_all(wanted: Sequence[tuple[io.FileIO, int, int]]) -> list[_Read | OSError]:
    return [_read(*each) for each in wanted]


def _read(handle: io.FileIO, at: int, size: int) -> _Read | OSError:
    fd = handle.fileno()
    try:
        data = os.pread(fd, size, at)
        # After the data: what was overwritten or cut back before it was read shows in head and size.
        head = os.pread(fd, HEAD_BYTES, 0)
        return _Read(data, head, os.fstat(fd).st_size)
    except OSError as error:
        return error
