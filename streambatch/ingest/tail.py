"""What to make of files that grow, get other names, are cut back, replaced or deleted. Pure: what stat and the first
bytes of a file say goes in, what to read and which file is finished comes out.

No byte is read twice under whatever names its file has, and no two files share a partition. While a file is open its
device and inode say which one it is; else they are a hint, and its first bytes decide.
"""

from collections.abc import Mapping
from hashlib import blake2b
from itertools import islice
from typing import NamedTuple

from streambatch.events import FileEvent
from streambatch.ingest.matching import Key, Mark, partition_name

HEAD_BYTES = 4 << 10
"""How much of a file's beginning tells it from others."""
MISSES_MIN = 2
"""A folder that is read while a file in it is renamed may show neither name: only the next look tells."""


class Identity(NamedTuple):
    """The digest of a file's first `length` bytes, which grow with the file up to HEAD_BYTES."""

    length: int
    digest: bytes

    def fits(self, head: bytes) -> bool:
        """Tell whether a file that begins like this can be the one."""
        return identity_of(head[: self.length]) == self


def identity_of(head: bytes) -> Identity:
    """Return the identity of a file with these first bytes."""
    return Identity(len(head), blake2b(head, digest_size=16).digest())


NOTHING_KNOWN = identity_of(b"")


class Held(NamedTuple):
    """What an open handle says of a file without a name that matches."""

    size: int
    links: int


class Followed:
    """One file, whatever it is called.

    partition: its name for good. path: where it was last found. size: how long it was last seen. read_to: offset of the
    next byte to read. from_end: read what comes after its last record boundary only.
    """

    __slots__ = (
        "from_end", "grew_at", "identity", "is_done", "is_renamed", "links", "mark", "misses", "partition", "path",
        "read_to", "size", "was_opened",
    )  # fmt: skip

    def __init__(self, partition: str, path: str, mark: Mark, now: float) -> None:
        self.partition, self.path, self.mark = partition, path, mark
        self.size, self.read_to = mark.size, 0
        self.identity = NOTHING_KNOWN
        self.from_end = self.is_renamed = self.is_done = self.was_opened = False
        self.misses, self.links = 0, 0
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

    def __init__(self, rotate_wait: float, *, from_end: bool = False) -> None:
        self._rotate_wait, self._from_end = rotate_wait, from_end
        self._files: dict[Key, Followed] = {}
        self._names: dict[str, int] = {}
        self._unread: dict[Followed, None] = {}
        self._first: dict[Followed, int] = {}
        self._is_first_look = True
        self._aside: list[Followed] = []
        self._leaving: dict[Followed, None] = {}

    @property
    def has_unread(self) -> bool:
        return bool(self._unread)

    @property
    def wants_look(self) -> bool:
        """Whether `see` must be told even of marks that are as they were."""
        return bool(self._aside) or any(file.misses for file in self._leaving)

    def see(self, marks: Mapping[str, Mark], held: Mapping[Key, Held], now: float) -> list[Followed]:
        """Learn which paths match, and what open handles say of the missing files. Returns the files just renamed."""
        paths = {mark.key: path for path, mark in sorted(marks.items(), reverse=True)}
        renamed = []
        for key, file in self._files.items():
            path = paths.pop(key, None)
            was_renamed = file.is_renamed
            if path is None:
                self._miss(file, held.get(key), now)
            else:
                mark = marks[path]
                at_home = marks.get(file.path)
                self._find(file, file.path if at_home is not None and at_home.key == key else path, mark, now)
            if file.is_renamed and not was_renamed:
                renamed.append(file)
            if file.is_leaving and file in self._unread:
                self._first.setdefault(file, file.size)
        self._retry_aside()
        self._add(sorted(paths.values(), key=lambda path: (marks[path].modified_ns, path)), marks, now)
        return renamed

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
                old.mark, old.size, old.misses, old.is_renamed = file.mark, size, 0, False
                self._files[old.mark.key] = old
                self._unread[old] = None
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
        self._unread.pop(file, None)
        if has_more:
            self._unread[file] = None
        if file.read_to >= self._first.get(file, 0):
            self._first.pop(file, None)
        return True

    def restart(self, file: Followed, now: float) -> None:
        """Read a file that was cut back, or written anew, from its beginning, as another partition."""
        file.partition = self._new_name(file.path)
        file.read_to, file.identity, file.from_end = 0, NOTHING_KNOWN, False
        self._grew(file, now)
        self._unread[file] = None
        self._first.pop(file, None)

    def set_aside(self, file: Followed) -> None:
        """Learn that its path leads to it no longer; where it is now the next look tells."""
        self._unread.pop(file, None)
        self._aside.append(file)

    def reread(self, file: Followed, position: int) -> None:
        """Learn that what was read after `position` is forgotten; it is read again when the file grows or is due."""
        file.read_to = position

    def due(self, now: float) -> list[Followed]:
        """Return the renamed and missing files that have been read and grew no more for `rotate_wait`."""
        due = []
        for file in self._leaving:
            is_sure = file.misses == 0 or file.misses >= MISSES_MIN
            if not is_sure or file in self._unread or now - file.grew_at < self._rotate_wait:
                continue
            if file.read_to < file.size:
                self._unread[file] = None
            else:
                due.append(file)
        return due

    def finish(self, file: Followed) -> FileEvent:
        """Take a file that is due as read to its end. One that still matches is kept, should it grow after all."""
        self._leaving.pop(file, None)
        file.is_done = True
        if not file.misses:
            return "completed"
        self.forget(file)
        return "completed" if file.links else "deleted"

    def forget(self, file: Followed) -> None:
        """Follow a file no longer."""
        self._files.pop(file.mark.key, None)
        self._leaving.pop(file, None)
        self._unread.pop(file, None)

    def _find(self, file: Followed, path: str, mark: Mark, now: float) -> None:
        if mark != file.mark or path != file.path or file.misses:
            self._unread[file] = None
        if path != file.path:
            file.path, file.is_renamed, file.grew_at = path, True, now
        if mark.size != file.size:
            self._grew(file, now)
        file.mark, file.size, file.misses, file.links = mark, mark.size, 0, 0
        if file.is_leaving and not file.is_done:
            self._leaving[file] = None
        elif not file.is_leaving:
            self._leaving.pop(file, None)

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
            self._unread[file] = None
        if held.links and file.misses >= MISSES_MIN:
            file.is_renamed = True

    def _grew(self, file: Followed, now: float) -> None:
        file.grew_at, file.is_done = now, False
        if file.is_leaving:
            self._leaving[file] = None

    def _retry_aside(self) -> None:
        for file in self._aside:
            if not file.misses and file.mark.key in self._files:
                self._unread[file] = None
        self._aside.clear()

    def _add(self, paths: list[str], marks: Mapping[str, Mark], now: float) -> None:
        for path in paths:
            file = Followed(self._new_name(path), path, marks[path], now)
            self._files[file.mark.key] = file
            self._unread[file] = None
            if self._is_first_look:
                file.from_end = self._from_end
                self._first[file] = file.size
        self._is_first_look = False

    def _new_name(self, path: str) -> str:
        """Return a partition name never given before: the path, then `<path>#2` and so on."""
        base = name = partition_name(path)
        while name in self._names:
            self._names[base] += 1
            name = f"{base}#{self._names[base]}"
        self._names[name] = 1
        return name
