"""Which files a source's paths and globs mean. Blocking: call it in a thread.

Whatever names lead to it, a file is found once; a glob passes over what isn't a file, a plain path must not be else.
"""

import glob
import os
import stat
from collections.abc import Sequence
from typing import NamedTuple

from streambatch.errors import SourceError

_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


Key = tuple[int, int]
"""Device and inode: what the system knows a file by; free to be used again once the file is gone."""


class Mark(NamedTuple):
    """What tells whether a file is another one, or changed, without opening it."""

    device: int
    inode: int
    size: int
    modified_ns: int

    @property
    def key(self) -> Key:
        return self.device, self.inode


def find_files(source: str, patterns: Sequence[str]) -> list[str]:
    """Return the paths that match, sorted. Raises SourceError that names the pattern which matches no file."""
    marks: dict[str, Mark] = {}
    for pattern in patterns:
        found = _find(source, pattern)
        if not found:
            raise SourceError(source, f"no file matches {pattern}")
        marks |= found
    return [path for path, _ in sorted(once(marks).items())]


def find_marks(source: str, patterns: Sequence[str]) -> dict[str, Mark]:
    """Return the paths that match now, if any. Raises SourceError for a plain path of what isn't a file."""
    marks: dict[str, Mark] = {}
    for pattern in patterns:
        marks |= _find(source, pattern)
    return marks


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


def _find(source: str, pattern: str) -> dict[str, Mark]:
    marks = {}
    for path in glob.glob(pattern, recursive=True) or [pattern]:
        try:
            status = os.stat(path)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise SourceError(source, f"{path}: {error.strerror}") from error
        if stat.S_ISREG(status.st_mode):
            marks[path] = Mark(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
        elif path == pattern:
            raise SourceError(source, f"{path} is {kind_of(status.st_mode)}, not a file")
    return marks
