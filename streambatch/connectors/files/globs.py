"""Finds the files that paths and globs match. Blocking: call it in a thread.

A file is found once, however many names lead to it. A glob passes over directories and the like; a plain path to one
is an error.
A path that can't be looked at is not one that isn't there.
"""

import glob
import os
from collections.abc import Sequence
from contextlib import suppress
from stat import S_IFBLK, S_IFCHR, S_IFDIR, S_IFIFO, S_IFMT, S_IFSOCK, S_ISREG
from typing import NamedTuple

from streambatch.connectors.files.outage import is_passing
from streambatch.core.errors import SourceError

_KINDS = {
    S_IFDIR: "a directory",
    S_IFIFO: "a pipe",
    S_IFSOCK: "a socket",
    S_IFCHR: "a device",
    S_IFBLK: "a device",
}


FileId = tuple[int, int]
"""Device and inode. The system gives them to another file once this one is gone: they are a hint, and no identity."""


class Home(NamedTuple):
    """The folder a file is in that links lead to from another, and the device that folder is on."""

    folder: str
    device: int


class FileStat(NamedTuple):
    """The status of a file, taken without opening it. If it changes, the file changed, or is another one."""

    device: int
    inode: int
    size: int
    modified_ns: int
    folder: int = 0
    """The device of the folder of its path: another one when something was mounted there, or no longer is."""
    home: Home | None = None
    """Where links lead to from its path, if known, and if that is another folder."""

    @property
    def id(self) -> FileId:
        return self.device, self.inode


class Listing(NamedTuple):
    """Files that patterns match at one moment."""

    stats: dict[str, FileStat]
    """Of the files that match, by path."""
    unseen: dict[str, OSError]
    """Paths that could not be looked at, which is not the same as a file that is not there."""
    empty: list[str]
    """Patterns that no file matched."""


def find_files(source: str, patterns: Sequence[str]) -> list[str]:
    """Return the paths that match, sorted. Raises SourceError that names the pattern which matches no file."""
    listing = _all_of(source, patterns)
    check_not_empty(source, listing)
    return [path for path, _ in sorted(each_once(listing.stats).items())]


def stats_of(source: str, patterns: Sequence[str]) -> dict[str, FileStat]:
    """Return the paths that match now, if any. Raises SourceError for a plain path of what isn't a file."""
    return _all_of(source, patterns).stats


def look(source: str, patterns: Sequence[str]) -> Listing:
    """Return what matches now. Raises SourceError for a plain path of what isn't a file."""
    listing = Listing({}, {}, [])
    folders: dict[str, int] = {}
    for pattern in patterns:
        before = len(listing.stats) + len(listing.unseen)
        _check_folder(pattern, listing)
        is_found = [_see(source, path, pattern, listing, folders) for path in _paths(pattern)]
        if not any(is_found) and len(listing.stats) + len(listing.unseen) == before:
            listing.empty.append(pattern)
    return listing


def check_not_empty(source: str, listing: Listing) -> None:
    """Raise SourceError that names the first pattern which matched no file."""
    if listing.empty:
        raise SourceError(source, f"no file matches {listing.empty[0]}")


def stat_of(status: os.stat_result, folder: int) -> FileStat:
    """Return what is kept of a file's status. folder: the device of its folder."""
    return FileStat(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, folder)


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


def home_of(path: str, id: FileId) -> Home | None:
    """Return where a file is, unless that is the folder of its path, or the path leads to another file by now."""
    with suppress(OSError):
        real = os.path.realpath(path)
        if real != os.path.abspath(path):
            status, folder = os.stat(real), os.path.dirname(real)
            if (status.st_dev, status.st_ino) == id:
                return Home(folder, os.stat(folder).st_dev)
    return None


def folders_of(path: str, home: str) -> list[str]:
    """Return where a file is looked for that its path leads to no longer: renaming leaves it in its folder.

    home: the folder that links led to when it was seen, empty if none did.
    """
    return [os.path.dirname(path), home] if home else [os.path.dirname(path)]


def each_once(stats: dict[str, FileStat]) -> dict[str, FileStat]:
    """Return the stats without the second and later names, in their order, of one file."""
    # Reversed: the first name in order is set last, and stays.
    first = {stat.id: path for path, stat in sorted(stats.items(), reverse=True)}
    return {path: stats[path] for path in first.values()}


def kind_of(mode: int) -> str | None:
    """Return a word for what a mode stands for; None for a file."""
    return None if S_ISREG(mode) else _KINDS.get(S_IFMT(mode), "something else")


def _all_of(source: str, patterns: Sequence[str]) -> Listing:
    listing = look(source, patterns)
    for path, error in listing.unseen.items():
        raise SourceError(source, f"{path}: {error.strerror}") from error
    return listing


def _paths(pattern: str) -> list[str]:
    # glob passes over what it can't look at; looked at as a plain path, it gives the error.
    return glob.glob(pattern, recursive=True) or [pattern]


def _check_folder(pattern: str, listing: Listing) -> None:
    """Add the folder a glob starts from to the unseen paths if it can't be listed."""
    # `glob` itself takes such a folder for an empty one: all its files would seem gone.
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
        listing.unseen[folder] = error


def _see(source: str, path: str, pattern: str, listing: Listing, folders: dict[str, int]) -> bool:
    """Add what a path leads to. Returns whether it is a file."""
    try:
        status = os.stat(path)
        if S_ISREG(status.st_mode):
            folder = os.path.dirname(path)
            if folder not in folders:
                folders[folder] = os.stat(folder or ".").st_dev
            listing.stats[path] = stat_of(status, folders[folder])
            return True
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        if not is_passing(error):
            raise SourceError(source, f"{path}: {error.strerror}") from error
        listing.unseen[path] = error
        return False
    if path == pattern:
        raise SourceError(source, f"{path} is {kind_of(status.st_mode)}, not a file")
    return False
