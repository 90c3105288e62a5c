"""What a source of files remembers of them from one run to the next, and which file is which then. Pure.

A file is known by its first bytes. Device, inode and path only say where to look first, so that files which begin
alike aren't confused: none of them makes a file of other first bytes the one that was known.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import NamedTuple

import msgspec

from streambatch.connectors.files.identity import NOTHING_KNOWN, Identity, identity_of
from streambatch.connectors.files.matching import Mark, partition_name
from streambatch.core.durable import Notes, Saved, learned


@learned
class FileNotes(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is stored of a file.

    path: as a partition name. folder: the device of the folder of its path. home, home_device: the folder that links
    led to from there, and its device. head, digest: its identity. start: where reading began. from_end: it is yet to
    begin, after the last record in so many bytes. renamed: it is no longer where it was found first. end, size: where
    its last record ended, and how long it was, when it had been read to its end.
    """

    path: str = ""
    device: int = 0
    inode: int = 0
    folder: int = 0
    home: str = ""
    home_device: int = 0
    head: int = 0
    digest: str = ""
    start: int = 0
    from_end: bool = False
    renamed: bool = False
    end: int | None = None
    size: int = 0

    @property
    def identity(self) -> Identity:
        return Identity(self.head, bytes.fromhex(self.digest)) if self.head else NOTHING_KNOWN


def notes_of(path: str, mark: Mark, identity: Identity) -> FileNotes:
    """Return the notes of a file that is being read."""
    head, digest = identity.length, identity.digest.hex() if identity.length else ""
    home, home_device = (partition_name(mark.home.folder), mark.home.device) if mark.home else ("", 0)
    return FileNotes(
        path=partition_name(path),
        device=mark.device,
        inode=mark.inode,
        folder=mark.folder,
        home=home,
        home_device=home_device,
        head=head,
        digest=digest,
    )


class Known(NamedTuple):
    """A partition of an earlier run. position: where reading goes on. is_acked: all that was received of it is."""

    partition: str
    position: int
    is_acked: bool
    notes: FileNotes
    identity: Identity

    @property
    def was_read(self) -> bool:
        """Whether it was read to its end, and all of that is acked."""
        return self.notes.end is not None and self.position >= self.notes.end

    def is_unchanged(self, size: int) -> bool:
        """Tell whether a file so long has nothing to read."""
        return self.was_read and size == self.notes.size


def known_from(saved: Mapping[str, Saved]) -> list[Known]:
    """Return what a checkpoint says of partitions."""
    return [_known(partition, each) for partition, each in saved.items()]


def _known(partition: str, saved: Saved) -> Known:
    notes = msgspec.convert({"path": partition, **saved.notes}, FileNotes)
    position = max(saved.position, notes.start)
    return Known(partition, position, saved.position >= saved.read_to, notes, notes.identity)


class NoteBook:
    """What there is to tell of partitions since it was last asked for."""

    def __init__(self, known: Iterable[Known] = ()) -> None:
        self._last = {each.partition: each.notes for each in known}
        self._changed: dict[str, FileNotes | None] = {}

    def write(self, partition: str, notes: FileNotes | None) -> None:
        """Note what a partition is known by; None when it is over."""
        if notes is None:
            self._last.pop(partition, None)
            self._changed[partition] = None
        elif self._last.get(partition) != notes:
            self._last[partition] = self._changed[partition] = notes

    def changed(self) -> dict[str, Notes | None]:
        """Return what was written since the last call."""
        changed, self._changed = self._changed, {}
        return {name: None if notes is None else msgspec.to_builtins(notes) for name, notes in changed.items()}


class Found(NamedTuple):
    """A file as it is now, and what begins it. length: the bytes that positions count in; None if that isn't known."""

    path: str
    mark: Mark
    head: bytes
    length: int | None


Key = Callable[[str, int, int], Hashable]
"""From path, device and inode."""
_HINTS: tuple[Key, ...] = (
    lambda path, device, inode: (path, device, inode),
    lambda path, device, inode: (device, inode),
    lambda path, device, inode: (path, inode),
    lambda path, device, inode: inode,
    lambda path, device, inode: path,
)
"""The better first. After a reboot a device may have another number."""


def match(known: Iterable[Known], found: Sequence[Found]) -> dict[str, Known]:
    """Return, by path, the partition that each file found goes on with; files that are new are left out.

    One that was cut back, or written anew in its place, is matched too: it is shorter than its position, or its first
    bytes do not fit. No partition is given twice.
    """
    matching = _Matching(known, found)
    for hint in _HINTS:
        matching.by(hint, lambda known, found: bool(known.identity.length) and _goes_on(known, found))
    matching.by_identity_alone()
    for hint in _HINTS:
        matching.by(hint, lambda known, found: not known.identity.length and _goes_on(known, found))
    for hint in _HINTS[:3:2]:
        matching.by(hint, lambda known, found: True)
    return matching.matches


def _goes_on(known: Known, found: Found) -> bool:
    return known.identity.fits(found.head) and (found.length is None or found.length >= known.position)


class _Matching:
    """Partitions and files that are not matched yet, and matches."""

    def __init__(self, known: Iterable[Known], found: Sequence[Found]) -> None:
        self._known = {each.partition: each for each in known}
        self._found = {each.path: each for each in found}
        self.matches: dict[str, Known] = {}

    def by(self, hint: Key, fits: Callable[[Known, Found], bool]) -> None:
        """Match what the hint is the same of; of several the one of which most is known."""
        candidates: dict[Hashable, list[Known]] = defaultdict(list)
        for known in self._known.values():
            candidates[hint(known.notes.path, known.notes.device, known.notes.inode)].append(known)
        for found in list(self._found.values()):
            key = hint(partition_name(found.path), found.mark.device, found.mark.inode)
            fitting = [each for each in candidates.get(key, ()) if each.partition in self._known and fits(each, found)]
            if fitting:
                self._take(max(fitting, key=lambda each: (each.identity.length, each.position)), found)

    def by_identity_alone(self) -> None:
        """Match a partition and a file if each is the only one that can be the other."""
        candidates: dict[Identity, list[Known]] = defaultdict(list)
        for known in self._known.values():
            if known.identity.length:
                candidates[known.identity].append(known)
        lengths = {identity.length for identity in candidates}
        fitting: dict[str, list[Found]] = defaultdict(list)
        rivals: dict[str, list[Known]] = {}
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

    def _take(self, known: Known, found: Found) -> None:
        self.matches[found.path] = self._known.pop(known.partition)
        del self._found[found.path]
