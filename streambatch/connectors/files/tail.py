"""What to make of files that grow, get other names, are cut back, replaced or deleted. Pure: what stat and the first
bytes of a file say goes in, what to read and which file is finished comes out.

No byte is read twice under whatever names its file has, and no two files share a partition. While a file is open its
device and inode say which one it is; else they are a hint, and its first bytes decide. Files of an earlier run are
taken up where it ended, whenever they are seen first.
"""

from collections.abc import Iterable, Mapping, Set
from itertools import islice
from typing import NamedTuple

from msgspec.structs import replace

from streambatch.connectors.files.globs import FileId, FileStat
from streambatch.connectors.files.identity import HEAD_BYTES, NOTHING_KNOWN, identity_of
from streambatch.connectors.files.matching import FoundFile, match
from streambatch.connectors.files.notes import KnownFile, NoteBook, notes_of
from streambatch.connectors.files.partitions import PartitionNames, partition_name
from streambatch.core.events import FileEvent

MISSES_MIN = 2
"""A folder that is read while a file in it is renamed may show neither name: only the next look tells."""


class Held(NamedTuple):
    """What an open handle says of a file without a name that matches."""

    size: int
    links: int


class Followed:
    """One file, whatever it is called.

    partition: its name for good. path: where it was last found. size: how long it was last seen. read_to: offset of the
    next byte to read. start: where reading began. from_end: it is yet to begin, after the last record that ends within
    the first `start` bytes. end: where its last record ended, once it is done.
    """

    __slots__ = (
        "end",
        "from_end",
        "grew_at",
        "identity",
        "is_done",
        "is_renamed",
        "links",
        "misses",
        "partition",
        "path",
        "read_to",
        "size",
        "start",
        "stat",
        "was_opened",
    )  # fmt: skip

    def __init__(self, partition: str, path: str, stat: FileStat, now: float) -> None:
        self.partition, self.path, self.stat = partition, path, stat
        self.size, self.read_to = stat.size, 0
        self.identity = NOTHING_KNOWN
        self.from_end = self.is_renamed = self.is_done = self.was_opened = False
        self.misses, self.links = 0, 0
        self.start = self.end = 0
        self.grew_at = now

    @property
    def is_leaving(self) -> bool:
        """Whether it is no longer, or not under its name, among the files that match."""
        return self.is_renamed or self.misses > 0


class Tail:
    """The files being followed, and which of them want to be read or are finished.

    Files that were there at first, and what is known of a file when it is renamed or goes, come before the rest:
    records written one after the other are then read so, though they are in different files.
    """

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
        self._unread: dict[Followed, None] = {}
        self._held: set[Followed] = set()
        self._first: dict[Followed, int] = {}
        self._is_first_look = True
        self._aside: list[Followed] = []
        self._leaving: dict[Followed, None] = {}

    @property
    def has_unread(self) -> bool:
        return bool(self._unread)

    @property
    def files(self) -> Mapping[FileId, Followed]:
        """The files being followed."""
        return self._files

    @property
    def absent(self) -> list[KnownFile]:
        """What is known of an earlier run and was not seen in this one."""
        return list(self._absent.values())

    @property
    def wants_look(self) -> bool:
        """Whether `see` must be told even of stats that are as they were."""
        return bool(self._aside) or any(file.misses for file in self._leaving)

    def strange(self, stats: Mapping[str, FileStat]) -> list[str]:
        """Return the paths of which `see` must be told the first bytes: each may be of a file that was known before."""
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
        """Learn which paths match, and what open handles say of the missing files. Returns the files just renamed.

        heads: what begins each of the `strange` files; one that it leaves out is not taken up now. unsought: missing
        files that may be somewhere else.
        """
        paths = {stat.id: path for path, stat in sorted(stats.items(), reverse=True)}
        renamed = []
        for key, file in self._files.items():
            path = paths.pop(key, None)
            was_renamed = file.is_renamed
            if path is None:
                if not file.misses or key not in unsought:
                    self._miss(file, held.get(key), now)
            else:
                stat = stats[path]
                at_home = stats.get(file.path)
                self._find(file, file.path if at_home is not None and at_home.id == key else path, stat, now)
            if file.is_renamed and not was_renamed:
                renamed.append(file)
            if file.is_leaving and file in self._unread:
                self._first.setdefault(file, file.size)
        self._retry_aside()
        added = self._add(sorted(paths.values(), key=lambda path: (stats[path].modified_ns, path)), stats, heads, now)
        return renamed + [file for file in added if file.is_renamed]

    def take_up(self, known: KnownFile, path: str, stat: FileStat, now: float) -> Followed:
        """Go on with a file that no matching name leads to, but a handle does. Call it before the first `see`."""
        file = self._taken_up(self._absent.pop(known.partition), path, stat, now)
        self._first[file] = file.size
        self._want(file)
        return file

    def give_up(self, partition: str) -> None:
        """Learn that a partition of an earlier run is over: its file won't be seen again."""
        del self._absent[partition]
        self._book.write(partition, None)

    def next_round(self, files_max: int) -> list[Followed]:
        """Return files to read from, fairly by turns, but one by one, oldest first, what must come before the rest."""
        while self._first:
            oldest = next(iter(self._first))
            if oldest in self._unread:
                return [oldest]
            del self._first[oldest]
        return list(islice(self._unread, files_max))

    def started(self, file: Followed, read_to: int) -> bool:
        """Learn where reading starts. True means that the file was never open before."""
        if file.from_end:
            file.start = read_to
        file.read_to, file.from_end = read_to, False
        is_first, file.was_opened = not file.was_opened, True
        return is_first

    def recognise(self, file: Followed, head: bytes, size: int) -> Followed:
        """Return the file that a newly opened one continues: itself, or what its copy has just replaced at its path."""
        if file.identity.length or len(head) < HEAD_BYTES:
            return file
        for old in self._leaving:
            if old.misses and old.path == file.path and old.identity == identity_of(head) and size >= old.read_to:
                self.forget(file)
                self.forget(old)
                old.stat, old.size, old.misses, old.is_renamed = file.stat, size, 0, False
                self._files[old.stat.id] = old
                self._want(old)
                self._note(old)
                return old
        return file

    def accept(self, file: Followed, head: bytes, size: int, read: int, now: float) -> bool:
        """Learn that `read` bytes came from `read_to` on, and what begins the file and how long it was just after.

        False means that this is not what was read before: the bytes are not to be used, and `restart` is due.
        """
        if size < file.read_to or not file.identity.fits(head):
            return False
        file.read_to += read
        has_more = file.read_to < size and (read > 0 or size != file.size)
        file.size = size
        if len(head) > file.identity.length:
            file.identity = identity_of(head)
        if read:
            self._grew(file, now)
        self._note(file)
        self._unread.pop(file, None)
        if has_more:
            self._want(file)
        if file.read_to >= self._first.get(file, 0):
            self._first.pop(file, None)
        return True

    def restart(self, file: Followed, now: float) -> None:
        """Read a file that was cut back, or written anew, from its beginning, as another partition."""
        self._book.write(file.partition, None)
        file.partition = self._names.take(file.path)
        file.read_to, file.start, file.identity, file.from_end = 0, 0, NOTHING_KNOWN, False
        self._grew(file, now)
        self._note(file)
        self._want(file)
        self._first.pop(file, None)

    def set_aside(self, file: Followed) -> None:
        """Learn that its path leads to it no longer; where it is now the next look tells."""
        self._unread.pop(file, None)
        self._aside.append(file)

    def hold(self, file: Followed) -> None:
        """Learn that it can't be read at the moment: others don't wait for it, and it is not finished."""
        self._held.add(file)
        self._unread.pop(file, None)

    def free(self, file: Followed) -> None:
        """Learn that reading it is worth a try again."""
        self._held.discard(file)
        if self._files.get(file.stat.id) is file:
            self._want(file)

    def reread(self, file: Followed, position: int) -> None:
        """Learn that what was read after `position` is forgotten; it is read again when the file grows or is due."""
        file.read_to = position

    def due(self, now: float) -> list[Followed]:
        """Return the renamed and missing files that have been read and grew no more for `rotate_wait`."""
        due = []
        for file in self._leaving:
            is_sure = file.misses == 0 or file.misses >= MISSES_MIN
            if not is_sure or file in self._unread or file in self._held:
                continue
            if now - file.grew_at < self._rotate_wait:
                continue
            if file.read_to < file.size:
                self._want(file)
            else:
                due.append(file)
        return due

    def finish(self, file: Followed, end: int | None = None) -> FileEvent:
        """Take a file that is due as read to its end. One that still matches is kept, should it grow after all.

        end: where its last record ended, if that is not where reading did.
        """
        self._leaving.pop(file, None)
        file.is_done, file.end = True, file.read_to if end is None else end
        if not file.misses:
            self._note(file)
            return "completed"
        self.forget(file)
        return "completed" if file.links else "deleted"

    def forget(self, file: Followed) -> None:
        """Follow a file no longer."""
        self._book.write(file.partition, None)
        self._files.pop(file.stat.id, None)
        self._leaving.pop(file, None)
        self._unread.pop(file, None)
        self._held.discard(file)

    def _find(self, file: Followed, path: str, stat: FileStat, now: float) -> None:
        is_changed = stat != file.stat or path != file.path
        if is_changed or file.misses:
            self._want(file)
        if path != file.path:
            file.path, file.is_renamed, file.grew_at = path, True, now
        if stat.size != file.size:
            self._grew(file, now)
        file.stat, file.size, file.misses, file.links = stat, stat.size, 0, 0
        if file.is_leaving and not file.is_done:
            self._leaving[file] = None
        elif not file.is_leaving:
            self._leaving.pop(file, None)
        if is_changed:
            self._note(file)

    def _miss(self, file: Followed, held: Held | None, now: float) -> None:
        file.misses += 1
        if file.misses == 1:
            file.grew_at = now
            self._leaving[file] = None
        if held is None:
            if file.misses >= MISSES_MIN:
                file.size = file.read_to
                self._unread.pop(file, None)
            return
        file.links = held.links
        if held.size != file.size:
            file.size = held.size
            self._grew(file, now)
            self._want(file)
        if held.links and file.misses >= MISSES_MIN:
            file.is_renamed = True

    def _grew(self, file: Followed, now: float) -> None:
        file.grew_at, file.is_done = now, False
        if file.is_leaving:
            self._leaving[file] = None

    def _retry_aside(self) -> None:
        for file in self._aside:
            if not file.misses and file.stat.id in self._files:
                self._want(file)
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
                file = self._taken_up(self._absent.pop(matches[path].partition), path, stats[path], now)
            else:
                file = Followed(self._names.take(path), path, stats[path], now)
                file.from_end = self._is_first_look and self._from_end
                file.start = file.size if file.from_end else 0
                self._files[file.stat.id] = file
                self._want(file)
            if self._is_first_look and file in self._unread:
                self._first[file] = file.size
            self._note(file)
            added.append(file)
        self._is_first_look = False
        return added

    def _taken_up(self, known: KnownFile, path: str, stat: FileStat, now: float) -> Followed:
        """Return a file of an earlier run as it was then, to be read if it changed or waits to be finished."""
        notes = known.notes
        file = Followed(known.partition, path, stat, now)
        file.read_to, file.start, file.identity = known.position, notes.start, known.identity
        file.is_renamed = notes.renamed or partition_name(path) != notes.path
        file.from_end = notes.from_end and notes.inode == stat.inode
        if notes.from_end and not file.from_end:
            file.read_to = file.start = 0
        file.is_done, file.end = known.is_unchanged(stat.size), notes.end or 0
        self._files[file.stat.id] = file
        if not file.is_done:
            self._want(file)
            if file.is_renamed:
                self._leaving[file] = None
        return file

    def _want(self, file: Followed) -> None:
        """Have a file read from, unless that can't be done at the moment."""
        if file not in self._held:
            self._unread[file] = None

    def _note(self, file: Followed) -> None:
        notes = notes_of(file.path, file.stat, file.identity)
        self._book.write(
            file.partition,
            replace(
                notes,
                start=file.start,
                from_end=file.from_end,
                renamed=file.is_renamed,
                end=file.end if file.is_done else None,
                size=file.size if file.is_done else 0,
            ),
        )
