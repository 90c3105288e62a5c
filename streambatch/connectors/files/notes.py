"""Notes that a source of files stores of each partition, for the next run to find its file again. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import msgspec

from streambatch.connectors.files.globs import FileStat
from streambatch.connectors.files.identity import NOTHING_KNOWN, Identity
from streambatch.connectors.files.partitions import partition_name
from streambatch.core.checkpoints import PartitionNotes, SavedPartition, resolved_early


@resolved_early
class FileNotes(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The notes of a file, stored under these names."""

    path: str = ""
    """Where it was last found, as a partition name."""
    device: int = 0
    inode: int = 0
    folder: int = 0
    """The device of the folder of its path."""
    home: str = ""
    """The folder that links led to from its path, empty if none did."""
    home_device: int = 0
    head: int = 0
    """How many first bytes `digest` is of."""
    digest: str = ""
    start: int = 0
    """Where reading began."""
    from_end: bool = False
    """Reading is yet to begin, after the last record that ends within the first `start` bytes."""
    renamed: bool = False
    """It is no longer where it was found first."""
    end: int | None = None
    """Where its last record ended, once it was read to its end."""
    size: int = 0
    """How long it was then."""

    @property
    def identity(self) -> Identity:
        return Identity(self.head, bytes.fromhex(self.digest)) if self.head else NOTHING_KNOWN


def notes_of(path: str, stat: FileStat, identity: Identity) -> FileNotes:
    """Return the notes of a file that is being read."""
    head, digest = identity.length, identity.digest.hex() if identity.length else ""
    home, home_device = (partition_name(stat.home.folder), stat.home.device) if stat.home else ("", 0)
    return FileNotes(
        path=partition_name(path),
        device=stat.device,
        inode=stat.inode,
        folder=stat.folder,
        home=home,
        home_device=home_device,
        head=head,
        digest=digest,
    )


class KnownFile(NamedTuple):
    """A file that an earlier run has read from."""

    partition: str
    position: int
    """Where reading resumes."""
    is_acked: bool
    """Whether all that was ever received of it is acked."""
    notes: FileNotes
    identity: Identity

    @property
    def was_read(self) -> bool:
        """Whether it was read to its end, and all of that is acked."""
        return self.notes.end is not None and self.position >= self.notes.end

    def is_unchanged(self, size: int) -> bool:
        """Whether a file of this size has nothing more to read."""
        return self.was_read and size == self.notes.size


def known_files(saved: Mapping[str, SavedPartition]) -> list[KnownFile]:
    """Return what a checkpoint says of partitions."""
    return [_known(partition, each) for partition, each in saved.items()]


def _known(partition: str, saved: SavedPartition) -> KnownFile:
    notes = msgspec.convert({"path": partition, **saved.notes}, FileNotes)
    position = max(saved.position, notes.start)
    return KnownFile(partition, position, saved.position >= saved.read_to, notes, notes.identity)


class NoteBook:
    """The notes of all partitions, and which of them are yet to be stored."""

    def __init__(self, known: Iterable[KnownFile] = ()) -> None:
        self._last = {each.partition: each.notes for each in known}
        self._changed: dict[str, FileNotes | None] = {}

    def write(self, partition: str, notes: FileNotes | None) -> None:
        """Write down what a partition is recognised by; None when it is over."""
        if notes is None:
            self._last.pop(partition, None)
            self._changed[partition] = None
        elif self._last.get(partition) != notes:
            self._last[partition] = self._changed[partition] = notes

    def changed(self) -> dict[str, PartitionNotes | None]:
        """Return what was written since the last call."""
        changed, self._changed = self._changed, {}
        return {name: None if notes is None else msgspec.to_builtins(notes) for name, notes in changed.items()}
