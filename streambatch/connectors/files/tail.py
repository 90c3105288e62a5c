"""Decides what to read of files that grow, get other names, are cut back, replaced or deleted, and which are finished.

Pure: the results of stat and the first bytes of files go in, files to read and finished files come out. No byte is
read twice, whatever names its file has, and no two files share a partition. While a file is open its device and inode
identify it; else they are a hint, and its first bytes decide. A file of an earlier run resumes where that run ended,
whenever it is seen first. `followed` has the states of a file and all transitions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from typing import NamedTuple

from msgspec.structs import replace

from streambatch.connectors.files.followed import Followed, Presence, Progress
from streambatch.connectors.files.globs import FileId, FileStat
from streambatch.connectors.files.identity import HEAD_BYTES, NOTHING_KNOWN, identity_of
from streambatch.connectors.files.matching import FoundFile, match
from streambatch.connectors.files.notes import KnownFile, NoteBook, notes_of
from streambatch.connectors.files.partitions import PartitionNames, partition_name
from streambatch.connectors.files.reading_order import ReadingOrder
from streambatch.core.events import FileEvent


class Held(NamedTuple):
    """Length and number of names of an open file that no matching name leads to."""

    size: int
    links: int


class Tail:
    """The files being followed, and which of them are to be read or are finished."""

    def __init__(
        self,
        rotate_wait: float,
        *,
        from_end: bool = False,
        known: Iterable[KnownFile] = (),
        book: NoteBook | None = None,
    ) -> None:
        self._rotate_wait, self._book = rotate_wait, book or NoteBook()
        self._absent = {each.partition: each for each in known}
        # Where there was an earlier run, what it did not see was written since.
        self._from_end = from_end and not self._absent
        self._names = PartitionNames(self._absent)
        self._files: dict[FileId, Followed] = {}
        self._order = ReadingOrder()
        self._is_first_look = True
        self._aside: list[Followed] = []
        self._leaving: dict[Followed, None] = {}

    @property
    def has_unread(self) -> bool:
        return bool(self._order)

    @property
    def files(self) -> Mapping[FileId, Followed]:
        """The files being followed."""
        return self._files

    @property
    def absent(self) -> list[KnownFile]:
        """The files of an earlier run that were not seen in this one."""
        return list(self._absent.values())

    @property
    def wants_look(self) -> bool:
        """Whether `see` must be given even stats that are as they were."""
        return bool(self._aside) or any(file.is_missing for file in self._leaving)

    def unrecognised(self, stats: Mapping[str, FileStat]) -> list[str]:
        """Return the paths whose first bytes `see` must be given: each may be of a file that an earlier run knew."""
        if not self._absent:
            return []
        return [path for path, stat in stats.items() if stat.id not in self._files]

    def see(
        self,
        stats: Mapping[str, FileStat],
        held: Mapping[FileId, Held],
        now: float,
        heads: Mapping[str, bytes] | None = None,
        unsought: Set[FileId] = frozenset(),
    ) -> list[Followed]:
        """Take in a look: which paths match, and what open handles say of missing files.

        heads: the first bytes of each `unrecognised` file; one that it leaves out is not followed yet. unsought:
        missing files that were not looked for under other names. Returns the files just renamed.
        """
        # Reversed: of several names the first in order is set last, and stays.
        paths = {stat.id: path for path, stat in sorted(stats.items(), reverse=True)}
        renamed = []
        for id, file in self._files.items():
            path = paths.pop(id, None)
            was_renamed = file.is_renamed
            if path is None:
                if not file.is_missing or id not in unsought:
                    self._miss(file, held.get(id), now)
            else:
                # A file with several names keeps the one it has: a further link to it is no renaming.
                at_home = stats.get(file.path)
                self._find(file, file.path if at_home is not None and at_home.id == id else path, stats[path], now)
            if file.is_renamed and not was_renamed:
                renamed.append(file)
            if file.is_leaving and file.progress is Progress.QUEUED:
                self._order.put_first(file)
        self._retry_aside()
        added = self._add(sorted(paths.values(), key=lambda path: (stats[path].modified_ns, path)), stats, heads, now)
        return renamed + [file for file in added if file.is_renamed]

    def resume(self, known: KnownFile, path: str, stat: FileStat, now: float) -> Followed:
        """Follow a file that a handle leads to, but no name that matches. Call it before the first `see`."""
        file = self._resumed(self._absent.pop(known.partition), path, stat, now)
        self._order.put_first(file)
        self._queue(file)
        return file

    def give_up(self, partition: str) -> None:
        """Forget a file of an earlier run: it won't be seen again."""
        del self._absent[partition]
        self._book.write(partition, None)

    def next_round(self, files_max: int) -> list[Followed]:
        """Return files to read from, fairly by turns, but one by one, oldest first, what must come before the rest."""
        return self._order.next_round(files_max)

    def started(self, file: Followed, read_to: int) -> bool:
        """Take note of where reading starts. Returns True if the file was never open before."""
        offsets = file.offsets
        if offsets.from_end:
            offsets.start = read_to
        offsets.read_to, offsets.from_end = read_to, False
        is_first, offsets.was_opened = not offsets.was_opened, True
        return is_first

    def recognise(self, file: Followed, head: bytes, size: int) -> Followed:
        """Return the file that a newly opened one continues: itself, or the one whose place its copy took."""
        if file.identity.length or len(head) < HEAD_BYTES:
            return file
        for old in self._leaving:
            is_copied = old.is_missing and old.path == file.path and old.identity == identity_of(head)
            if is_copied and size >= old.offsets.read_to:
                self.forget(file)
                self._replace_by_copy(old, file.stat, size)
                return old
        return file

    def accept(self, file: Followed, head: bytes, size: int, read: int, now: float) -> bool:
        """Count `read` bytes from `read_to` on as read. head, size: of the file just after.

        Returns False when this is not the content that was read before: the bytes are not to be used, and `restart` is
        due.
        """
        offsets = file.offsets
        if size < offsets.read_to or not file.identity.fits(head):
            return False
        offsets.read_to += read
        # A read that brings nothing while the size stays would be repeated for ever.
        has_more = offsets.read_to < size and (read > 0 or size != file.size)
        file.size = size
        if len(head) > file.identity.length:
            file.identity = identity_of(head)
        if read:
            self._grew(file, now)
        self._note(file)
        # Queued again, it is behind all others.
        self._rest(file)
        if has_more:
            self._queue(file)
        self._order.passed(file, offsets.read_to)
        return True

    def restart(self, file: Followed, now: float) -> None:
        """Read a file that was cut back, or overwritten, from its beginning, as another partition."""
        self._book.write(file.partition, None)
        file.partition = self._names.take(file.path)
        file.identity = NOTHING_KNOWN
        file.offsets.read_to, file.offsets.start, file.offsets.from_end = 0, 0, False
        self._grew(file, now)
        self._note(file)
        self._queue(file)
        self._order.restarted(file)

    def set_aside(self, file: Followed) -> None:
        """Leave a file whose path no longer leads to it to the next look."""
        self._become(file, Progress.ASIDE)
        self._aside.append(file)

    def hold(self, file: Followed) -> None:
        """Pass over a file that can't be read at the moment. It is not finished."""
        self._become(file, Progress.HELD)

    def free(self, file: Followed) -> None:
        """Try to read a held file again."""
        if file.progress is Progress.HELD:
            self._become(file, Progress.QUEUED)

    def reread(self, file: Followed, position: int) -> None:
        """Forget what was read after `position`; it is read again when the file grows or is due."""
        file.offsets.read_to = position

    def due(self, now: float) -> list[Followed]:
        """Return the renamed and missing files that were read and did not grow for `rotate_wait`."""
        due = []
        for file in self._leaving:
            if file.presence is Presence.MISSED or file.progress in (Progress.QUEUED, Progress.HELD):
                continue
            if now - file.grew_at < self._rotate_wait:
                continue
            if file.offsets.read_to < file.size:
                self._queue(file)
            else:
                due.append(file)
        return due

    def finish(self, file: Followed, end: int | None = None) -> FileEvent:
        """Count a file that is due as complete. One that still matches is kept, should it grow after all.

        end: where its last record ended, if that is not where reading did.
        """
        self._leaving.pop(file, None)
        file.offsets.is_done, file.offsets.end = True, file.offsets.read_to if end is None else end
        if not file.is_missing:
            self._become(file, Progress.DONE)
            self._note(file)
            return "completed"
        self.forget(file)
        return "completed" if file.links else "deleted"

    def forget(self, file: Followed) -> None:
        """Follow a file no longer."""
        self._book.write(file.partition, None)
        self._files.pop(file.stat.id, None)
        self._leaving.pop(file, None)
        self._become(file, Progress.OVER)

    def _become(self, file: Followed, progress: Progress) -> None:
        """Make a transition of `followed.PROGRESS_TRANSITIONS`: the only place where progress changes."""
        if file.progress is Progress.QUEUED:
            self._order.drop(file)
        if progress is Progress.QUEUED:
            self._order.add(file)
        file.progress = progress

    def _appear(self, file: Followed, presence: Presence) -> None:
        """Make a transition of `followed.PRESENCE_TRANSITIONS`: the only place where presence changes."""
        file.presence = presence

    def _queue(self, file: Followed) -> None:
        """Put a file into the reading order, unless it can't be read at the moment."""
        if file.progress not in (Progress.HELD, Progress.QUEUED):
            self._become(file, Progress.QUEUED)

    def _rest(self, file: Followed) -> None:
        """Take a file out of the reading order until something of it changes."""
        if file.progress in (Progress.QUEUED, Progress.ASIDE):
            self._become(file, Progress.DONE if file.offsets.is_done else Progress.IDLE)

    def _find(self, file: Followed, path: str, stat: FileStat, now: float) -> None:
        is_changed = stat != file.stat or path != file.path
        if is_changed or file.is_missing:
            self._queue(file)
        if path != file.path:
            file.path, file.is_renamed, file.grew_at = path, True, now
        if stat.size != file.size:
            self._grew(file, now)
        file.stat, file.size, file.links = stat, stat.size, 0
        presence = Presence.RENAMED if file.is_renamed else Presence.PLACED
        if file.presence is not presence:
            self._appear(file, presence)
        if file.is_leaving and not file.offsets.is_done:
            self._leaving[file] = None
        elif not file.is_leaving:
            self._leaving.pop(file, None)
        if is_changed:
            self._note(file)

    def _miss(self, file: Followed, held: Held | None, now: float) -> None:
        if not file.is_missing:
            file.grew_at = now
            self._leaving[file] = None
            self._appear(file, Presence.MISSED)
        elif file.presence is Presence.MISSED:
            self._appear(file, Presence.GONE)
        is_gone = file.presence is Presence.GONE
        if held is None:
            if is_gone:
                # Nothing leads to its unread bytes any more: without this it would never be due.
                file.size = file.offsets.read_to
                self._rest(file)
            return
        file.links = held.links
        if held.size != file.size:
            file.size = held.size
            self._grew(file, now)
            self._queue(file)
        if held.links and is_gone:
            file.is_renamed = True

    def _replace_by_copy(self, file: Followed, stat: FileStat, size: int) -> None:
        """Go on with a file in the copy that took its place: same content, another inode."""
        self._files.pop(file.stat.id, None)
        self._leaving.pop(file, None)
        file.stat, file.size, file.is_renamed = stat, size, False
        self._appear(file, Presence.PLACED)
        self._files[stat.id] = file
        # What kept the other inode from being read is no matter of this one.
        if file.progress is not Progress.QUEUED:
            self._become(file, Progress.QUEUED)
        self._note(file)

    def _grew(self, file: Followed, now: float) -> None:
        file.grew_at, file.offsets.is_done = now, False
        if file.progress is Progress.DONE:
            self._become(file, Progress.IDLE)
        if file.is_leaving:
            self._leaving[file] = None

    def _retry_aside(self) -> None:
        for file in self._aside:
            if file.progress is Progress.ASIDE:
                if file.is_missing:
                    self._rest(file)
                else:
                    self._queue(file)
        self._aside.clear()

    def _add(
        self, paths: list[str], stats: Mapping[str, FileStat], heads: Mapping[str, bytes] | None, now: float
    ) -> list[Followed]:
        if heads is not None:
            paths = [path for path in paths if path in heads]
        found = [FoundFile(path, stats[path], (heads or {}).get(path, b""), stats[path].size) for path in paths]
        matches = match(self._absent.values(), found) if heads else {}
        added = []
        for path in paths:
            if path in matches:
                file = self._resumed(self._absent.pop(matches[path].partition), path, stats[path], now)
            else:
                file = self._new(path, stats[path], now)
            if self._is_first_look and file.progress is Progress.QUEUED:
                self._order.put_first(file)
            self._note(file)
            added.append(file)
        self._is_first_look = False
        return added

    def _new(self, path: str, stat: FileStat, now: float) -> Followed:
        file = Followed(self._names.take(path), path, stat, now)
        file.offsets.from_end = self._is_first_look and self._from_end
        file.offsets.start = file.size if file.offsets.from_end else 0
        self._files[stat.id] = file
        self._queue(file)
        return file

    def _resumed(self, known: KnownFile, path: str, stat: FileStat, now: float) -> Followed:
        """Return a file of an earlier run as it was then, to be read if it changed or waits to be finished."""
        notes = known.notes
        is_renamed = notes.renamed or partition_name(path) != notes.path
        file = Followed(known.partition, path, stat, now, is_renamed=is_renamed)
        offsets = file.offsets
        file.identity = known.identity
        offsets.read_to, offsets.start = known.position, notes.start
        offsets.from_end = notes.from_end and notes.inode == stat.inode
        if notes.from_end and not offsets.from_end:
            offsets.read_to = offsets.start = 0
        offsets.is_done, offsets.end = known.is_unchanged(stat.size), notes.end or 0
        self._files[stat.id] = file
        if offsets.is_done:
            self._become(file, Progress.DONE)
        else:
            self._queue(file)
            if is_renamed:
                self._leaving[file] = None
        return file

    def _note(self, file: Followed) -> None:
        notes, offsets = notes_of(file.path, file.stat, file.identity), file.offsets
        self._book.write(
            file.partition,
            replace(
                notes,
                start=offsets.start,
                from_end=offsets.from_end,
                renamed=file.is_renamed,
                end=offsets.end if offsets.is_done else None,
                size=file.size if offsets.is_done else 0,
            ),
        )
