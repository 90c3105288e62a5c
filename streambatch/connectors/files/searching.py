"""Looks at followed files: which match now, and where the others are. Blocking: call it in a thread.

A file counts as gone only on proof: while its folder can't be looked at, or is no longer mounted, the last stat of the
file stands.
"""

import errno
import io
import os
from collections.abc import Iterable, Mapping, Sequence, Set
from contextlib import suppress
from typing import NamedTuple

from streambatch.connectors.files.followed import Followed, Presence
from streambatch.connectors.files.globs import FileId, FileStat, folder_device, folders_of, home_of, look, stat_of
from streambatch.connectors.files.identity import HEAD_BYTES, Identity
from streambatch.connectors.files.notes import KnownFile
from streambatch.connectors.files.opening import open_file
from streambatch.connectors.files.outage import is_passing
from streambatch.connectors.files.tail import Held

FOUND_AGAIN_MAX = 128
"""Files that no name leads to and are open: a file is looked for only while there are fewer, else in a later look."""


class Look(NamedTuple):
    """The result of one look."""

    stats: Mapping[str, FileStat]
    """The files that match, by path."""
    held: Mapping[FileId, Held]
    """What handles say of files that don't match."""
    unseen: Mapping[str, OSError]
    """Paths that could not be looked at."""
    found_again: dict[Followed, io.FileIO]
    """New handles of files that were renamed to what doesn't match."""
    unsought: Set[FileId]
    """Missing files that this look did not search their folders for."""
    failed: Mapping[Followed, OSError]
    """Files whose handles failed."""


class Renamed(NamedTuple):
    """A file where no name that matches leads to it."""

    handle: io.FileIO
    path: str
    stat: FileStat


def look_at(
    source: str, patterns: Sequence[str], files: Mapping[FileId, Followed], handles: Mapping[Followed, io.FileIO]
) -> Look:
    """Return what there is now. Raises SourceError for a plain path of what isn't a file."""
    stats, unseen, _ = look(source, patterns)
    missing = files.keys() - {stat.id for stat in stats.values()}
    for key in list(missing):
        stat = _still_there(files[key], unseen)
        if stat is not None:
            stats[files[key].path] = stat
            missing.remove(key)
    _find_homes(stats, files)
    found_again: dict[Followed, io.FileIO] = {}
    without_handle = (files[key] for key in missing if files[key] not in handles)
    # What is gone was looked for before, in vain.
    lost = [file for file in without_handle if file.presence is not Presence.GONE]
    room = max(0, FOUND_AGAIN_MAX - sum(file.is_missing for file in handles))
    for file in lost[:room]:
        home = file.stat.home
        renamed = _elsewhere(folders_of(file.path, home.folder if home else ""), file.stat.inode, file.identity)
        if renamed is not None:
            found_again[file] = renamed.handle
    held: dict[FileId, Held] = {}
    failed: dict[Followed, OSError] = {}
    for key in missing:
        handle = handles.get(files[key]) or found_again.get(files[key])
        if handle is not None:
            try:
                status = os.fstat(handle.fileno())
                held[key] = Held(status.st_size, status.st_nlink)
            except OSError as error:
                failed[files[key]] = error
                # What was last seen stands: a call that failed proves nothing.
                held[key] = Held(files[key].size, files[key].links)
    return Look(stats, held, unseen, found_again, {file.stat.id for file in lost[room:]}, failed)


def read_heads(stats: Mapping[str, FileStat]) -> tuple[dict[str, bytes], dict[str, OSError]]:
    """Return what begins each file, and what can't be read; a file that is another by now is in neither."""
    heads: dict[str, bytes] = {}
    unread: dict[str, OSError] = {}
    for path, stat in stats.items():
        try:
            handle = open_file(path, stat.id)
            if handle is not None:
                with handle:
                    heads[path] = os.pread(handle.fileno(), HEAD_BYTES, 0)
        except OSError as error:
            unread[path] = error
    return heads, unread


def find_again(known: Iterable[KnownFile], source: str, patterns: Sequence[str]) -> list[tuple[KnownFile, Renamed]]:
    """Return those of an earlier run that were renamed in their folder to what doesn't match, the oldest first."""
    matching = {stat.inode for stat in look(source, patterns).stats.values()}
    found = []
    for each in known:
        if each.identity.length and not each.was_read and each.notes.inode not in matching:
            folders = folders_of(each.notes.path, each.notes.home)
            renamed = _elsewhere(folders, each.notes.inode, each.identity)
            # Shorter than what was read of it: it was cut back since, or is another file.
            if renamed is not None and renamed.stat.size < each.position:
                renamed.handle.close()
            elif renamed is not None:
                found.append((each, renamed))
    return sorted(found, key=lambda pair: pair[1].stat.modified_ns)


def is_gone(known: Iterable[KnownFile]) -> list[KnownFile]:
    """Return those whose files aren't there under any name, while their folders are as they were."""
    gone: list[KnownFile] = []
    inodes: dict[str, set[int]] = {}
    for each in known:
        folders = folders_of(each.notes.path, each.notes.home)
        with suppress(OSError):
            for folder in folders:
                if folder not in inodes:
                    inodes[folder] = _inodes(folder)
            is_there = any(each.notes.inode in inodes[folder] for folder in folders)
            if _is_as_it_was(each) and not is_there:
                gone.append(each)
    return gone


def _is_as_it_was(known: KnownFile) -> bool:
    """Whether the folders that a file was in are on the devices they were on. Raises OSError."""
    notes = known.notes
    if folder_device(notes.path) != notes.folder:
        return False
    return not notes.home or _is_on(notes.home, notes.home_device)


def _is_on(folder: str, device: int) -> bool:
    return folder_device(os.path.join(folder, "")) == device


def _inodes(folder: str) -> set[int]:
    try:
        with os.scandir(folder or ".") as entries:
            return {entry.inode() for entry in entries}
    except (FileNotFoundError, NotADirectoryError):
        return set()


def _find_homes(stats: dict[str, FileStat], files: Mapping[FileId, Followed]) -> None:
    """Add to stats where their files are: once for each file, and again when it has another path."""
    for path, stat in list(stats.items()):
        file = files.get(stat.id)
        at_home = stats.get(file.path) if file is not None else None
        # Following links takes a call for each part of a path, so it is done for new and moved files only.
        if file is not None and at_home is not None and at_home.id == stat.id:
            home = file.stat.home
        else:
            home = home_of(path, stat.id)
        if home != stat.home:
            stats[path] = stat._replace(home=home)


def _still_there(file: Followed, unseen: dict[str, OSError]) -> FileStat | None:
    """Return the stat of a file that a glob did not show, or could not."""
    try:
        status = os.stat(file.path)
        if (status.st_dev, status.st_ino) == file.stat.id:
            return None if file.is_missing else stat_of(status, file.stat.folder)
        return None
    except (FileNotFoundError, NotADirectoryError):
        return _unmounted(file, unseen)
    except OSError as error:
        if is_passing(error):
            unseen[file.path] = error
    return None if file.is_missing else file.stat


def _unmounted(file: Followed, unseen: dict[str, OSError]) -> FileStat | None:
    if file.is_missing:
        return None
    with suppress(OSError):
        home = file.stat.home
        # A link that leads nowhere tells nothing while what it led to is not mounted.
        is_awaited = home is not None and os.path.islink(file.path) and not _is_on(home.folder, home.device)
        if folder_device(file.path) == file.stat.folder and not is_awaited:
            return None
    unseen[file.path] = OSError(errno.ENODEV, "the file system it was on is not mounted")
    return file.stat


def _elsewhere(folders: Sequence[str], inode: int, identity: Identity) -> Renamed | None:
    """Return a file that was renamed in the folder it is in."""
    for folder in folders:
        with suppress(OSError), os.scandir(folder or ".") as entries:
            for entry in entries:
                # The inode is part of the entry: no other file of the folder costs a stat.
                if entry.inode() == inode and (renamed := _opened(os.path.join(folder, entry.name), identity)):
                    return renamed
    return None


def _opened(path: str, identity: Identity) -> Renamed | None:
    status = os.stat(path)
    handle = open_file(path, (status.st_dev, status.st_ino))
    if handle is None:
        return None
    try:
        if identity.length and identity.fits(os.pread(handle.fileno(), HEAD_BYTES, 0)):
            return Renamed(handle, path, stat_of(status, folder_device(path)))
    except OSError:
        handle.close()
        raise
    handle.close()
    return None
