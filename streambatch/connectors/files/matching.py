"""Which files a source's paths and globs mean. Blocking: call it in a thread.

Whatever names lead to it, a file is found once; a glob passes over what isn't a file, a plain path must not be else.
What can't be looked at is told apart from what isn't there.
"""

import glob
import os
import stat
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import NamedTuple

from streambatch.connectors.files.outage import is_passing
from streambatch.core.errors import SourceError

_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


Key = tuple[int, int]
"""Device and inode: what the system knows a file by; free to be used again once the file is gone."""


class Home(NamedTuple):
    """The folder a file is in that links lead to from another, and the device that folder is on."""

    folder: str
    device: int


class Mark(NamedTuple):
    """What tells whether a file is another one, or changed, without opening it.

    folder: the device that the folder of its path is on. home: where it is, if known, and that is another folder.
    """

    device: int
    inode: int
    size: int
    modified_ns: int
    folder: int = 0
    home: Home | None = None

    @property
    def key(self) -> Key:
        return self.device, self.inode


class Sight(NamedTuple):
    """What one look showed: the files that match, by path, and the paths that could not be looked at.

    empty: the patterns that nothing matched.
    """

    marks: dict[str, Mark]
    unseen: dict[str, OSError]
    empty: list[str]


def find_files(source: str, patterns: Sequence[str]) -> list[str]:
    """Return the paths that match, sorted. Raises SourceError that names the pattern which matches no file."""
    sight = _all_of(source, patterns)
    check_not_empty(source, sight)
    return [path for path, _ in sorted(once(sight.marks).items())]


def find_marks(source: str, patterns: Sequence[str]) -> dict[str, Mark]:
    """Return the paths that match now, if any. Raises SourceError for a plain path of what isn't a file."""
    return _all_of(source, patterns).marks


def look(source: str, patterns: Sequence[str]) -> Sight:
    """Return what matches now. Raises SourceError for a plain path of what isn't a file."""
    sight = Sight({}, {}, [])
    folders: dict[str, int] = {}
    for pattern in patterns:
        before = len(sight.marks) + len(sight.unseen)
        _check_folder(pattern, sight)
        is_found = [_see(source, path, pattern, sight, folders) for path in _paths(pattern)]
        if not any(is_found) and len(sight.marks) + len(sight.unseen) == before:
            sight.empty.append(pattern)
    return sight


def check_not_empty(source: str, sight: Sight) -> None:
    """Raise SourceError that names the first pattern which matched no file."""
    if sight.empty:
        raise SourceError(source, f"no file matches {sight.empty[0]}")


def mark_of(status: os.stat_result, folder: int) -> Mark:
    """Return the mark of a file with this status."""
    return Mark(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, folder)


def folder_device(path: str) -> int:
    """Return the device of the folder a path is in, or, where that is gone, of the nearest above it. Raises OSError.

    It is another than it was when something that was mounted there no longer is.
    """
    folder = os.path.dirname(path)
    while True:
        try:
            return os.stat(folder or ".").st_dev
        except (FileNotFoundError, NotADirectoryError):
            if folder == os.path.dirname(folder):
                raise
            folder = os.path.dirname(folder)


def home_of(path: str, key: Key) -> Home | None:
    """Return where a file is, unless that is the folder of its path, or the path leads to another file by now."""
    with suppress(OSError):
        real = os.path.realpath(path)
        if real != os.path.abspath(path):
            status, folder = os.stat(real), os.path.dirname(real)
            if (status.st_dev, status.st_ino) == key:
                return Home(folder, os.stat(folder).st_dev)
    return None


def folders_of(path: str, home: str) -> list[str]:
    """Return where a file is looked for that its path leads to no longer: renaming leaves it in its folder.

    home: the folder that links led to when it was seen, empty if none did.
    """
    return [os.path.dirname(path), home] if home else [os.path.dirname(path)]


class PartitionNames:
    """Names given to partitions, none of them twice."""

    def __init__(self, taken: Iterable[str] = ()) -> None:
        self._taken = dict.fromkeys(taken, 1)

    def take(self, path: str) -> str:
        """Return a name never given before: the path, then `<path>#2` and so on."""
        base = name = partition_name(path)
        while name in self._taken:
            self._taken[base] = self._taken.get(base, 1) + 1
            name = f"{base}#{self._taken[base]}"
        self._taken[name] = 1
        return name


def once(marks: dict[str, Mark]) -> dict[str, Mark]:
    """Return the marks without the second and later names, in their order, of one file."""
    first = {mark.key: path for path, mark in sorted(marks.items(), reverse=True)}
    return {path: marks[path] for path in first.values()}


def partition_name(path: str) -> str:
    """Return the path as text that can be written anywhere: bytes that aren't UTF-8 become escapes."""
    return os.fsencode(path).decode(errors="backslashreplace")


def kind_of(mode: int) -> str | None:
    """Say what a file mode means, None for a file."""
    return None if stat.S_ISREG(mode) else _KINDS.get(stat.S_IFMT(mode), "something else")


def _all_of(source: str, patterns: Sequence[str]) -> Sight:
    sight = look(source, patterns)
    for path, error in sight.unseen.items():
        raise SourceError(source, f"{path}: {error.strerror}") from error
    return sight


def _paths(pattern: str) -> list[str]:
    return glob.glob(pattern, recursive=True) or [pattern]


def _check_folder(pattern: str, sight: Sight) -> None:
    """Notice that the folder a glob starts from can't be listed, which to `glob` is as if nothing were in it."""
    if not glob.has_magic(pattern):
        return
    folder = pattern
    while glob.has_magic(folder):
        folder = os.path.dirname(folder)
    try:
        os.scandir(folder or ".").close()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        sight.unseen[folder] = error


def _see(source: str, path: str, pattern: str, sight: Sight, folders: dict[str, int]) -> bool:
    """Add what a path leads to. Returns whether it is a file."""
    try:
        status = os.stat(path)
        if stat.S_ISREG(status.st_mode):
            folder = os.path.dirname(path)
            if folder not in folders:
                folders[folder] = os.stat(folder or ".").st_dev
            sight.marks[path] = mark_of(status, folders[folder])
            return True
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        if not is_passing(error):
            raise SourceError(source, f"{path}: {error.strerror}") from error
        sight.unseen[path] = error
        return False
    if path == pattern:
        raise SourceError(source, f"{path} is {kind_of(status.st_mode)}, not a file")
    return False
