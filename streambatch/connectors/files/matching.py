"""Decides which file is which after a restart. Pure.

A file is recognised by its first bytes. Device, inode and path only say where to look first, so that files which begin
alike aren't confused: none of them makes a file of other first bytes the known one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import NamedTuple

from streambatch.connectors.files.globs import FileStat
from streambatch.connectors.files.identity import Identity, identity_of
from streambatch.connectors.files.notes import KnownFile
from streambatch.connectors.files.partitions import partition_name


class FoundFile(NamedTuple):
    """A file as it is now."""

    path: str
    stat: FileStat
    head: bytes
    """Its first bytes, at most HEAD_BYTES."""
    length: int | None
    """How many bytes positions can count in; None if that is unknown, as of a compressed file."""


Hint = Callable[[str, int, int], Hashable]
"""From path, device and inode to what is compared."""
_HINTS: tuple[Hint, ...] = (
    lambda path, device, inode: (path, device, inode),
    lambda path, device, inode: (device, inode),
    lambda path, device, inode: (path, inode),
    lambda path, device, inode: inode,
    lambda path, device, inode: path,
)
"""The better first. After a reboot a device may have another number, so that inode and path count without it too."""


def match(known: Iterable[KnownFile], found: Sequence[FoundFile]) -> dict[str, KnownFile]:
    """Return, by path, the known file that each found file continues; new files are left out.

    A file that was cut back, or overwritten in its place, is matched too: it is shorter than its position, or its
    first bytes do not fit. No known file is given twice.
    """
    # Strongest evidence first: each rule takes what it matches away from those after it.
    matching = _Matching(known, found)
    for hint in _HINTS:
        matching.by(hint, lambda known, found: bool(known.identity.length) and _goes_on(known, found))
    matching.by_identity_alone()
    for hint in _HINTS:
        matching.by(hint, lambda known, found: not known.identity.length and _goes_on(known, found))
    # What is left and has path and inode of a known file was cut back or overwritten. The inode alone won't do: the
    # system gives it to another file once this one is gone.
    for hint in _HINTS[:3:2]:
        matching.by(hint, lambda known, found: True)
    return matching.matches


def _goes_on(known: KnownFile, found: FoundFile) -> bool:
    return known.identity.fits(found.head) and (found.length is None or found.length >= known.position)


class _Matching:
    """Known and found files that are not matched yet, and the matches."""

    def __init__(self, known: Iterable[KnownFile], found: Sequence[FoundFile]) -> None:
        self._known = {each.partition: each for each in known}
        self._found = {each.path: each for each in found}
        self.matches: dict[str, KnownFile] = {}

    def by(self, hint: Hint, fits: Callable[[KnownFile, FoundFile], bool]) -> None:
        """Match files with equal hints; of several known ones prefer the longest known head, then the furthest read."""
        candidates: dict[Hashable, list[KnownFile]] = defaultdict(list)
        for known in self._known.values():
            candidates[hint(known.notes.path, known.notes.device, known.notes.inode)].append(known)
        for found in list(self._found.values()):
            key = hint(partition_name(found.path), found.stat.device, found.stat.inode)
            fitting = [each for each in candidates.get(key, ()) if each.partition in self._known and fits(each, found)]
            if fitting:
                self._take(max(fitting, key=lambda each: (each.identity.length, each.position)), found)

    def by_identity_alone(self) -> None:
        """Match two files by their first bytes if neither fits a third: a copy is the file only if nothing else is."""
        candidates: dict[Identity, list[KnownFile]] = defaultdict(list)
        for known in self._known.values():
            if known.identity.length:
                candidates[known.identity].append(known)
        # A digest for each length that is known, however many files there are.
        lengths = {identity.length for identity in candidates}
        fitting: dict[str, list[FoundFile]] = defaultdict(list)
        rivals: dict[str, list[KnownFile]] = {}
        for found in self._found.values():
            identities = [identity_of(found.head[:length]) for length in lengths if length <= len(found.head)]
            rivals[found.path] = [
                each for one in identities for each in candidates.get(one, ()) if _goes_on(each, found)
            ]
            for each in rivals[found.path]:
                fitting[each.partition].append(found)
        for partition, files in fitting.items():
            if len(files) == len(rivals[files[0].path]) == 1:
                self._take(self._known[partition], files[0])

    def _take(self, known: KnownFile, found: FoundFile) -> None:
        self.matches[found.path] = self._known.pop(known.partition)
        del self._found[found.path]
