"""Input that a source knows of and has not handed over yet."""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

FileState = Literal["waiting", "reading", "idle", "held", "done"]
"""Of an input file: not begun, with something to read, read as far as it goes and followed on, unreadable for now, read
to its end."""
FILE_STATES: tuple[FileState, ...] = get_args(FileState)


class Backlog(NamedTuple):
    """Bytes in files, compressed as they lie there, that were not read; and files by state."""

    lag_bytes: int
    files: dict[FileState, int]


def no_files() -> dict[FileState, int]:
    """Return a count of 0 for every state."""
    return dict.fromkeys(FILE_STATES, 0)
