"""A file that one process appends to, on behalf of a sink or of the dead letters.

What is written is there whole or not at all: a write that fails half-way is cut off again, so that the same write may
be made again. What `sync` has returned for is durable. An fsync that failed is final, since the system may have thrown
the data away and cleared the error; anything else that fails on a disk is an outage. While the file is open no other
process can claim it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import aiofiles
import anyio
from aiofiles.threadpool.binary import AsyncFileIO
from anyio import to_thread

from streambatch.core.errors import HeldError, SinkError, SinkOutage

CLOSE_SECONDS = 5.0
"""How long a cancelled task waits for a file to close."""
_LASTING = frozenset(
    (
        errno.EBADF, errno.EEXIST, errno.EFBIG, errno.EINVAL, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG,
        errno.ENOTDIR, errno.ENXIO,
    )
)  # fmt: skip
"""Errors that last until the path, or the file there, is changed; any other error of a disk may pass."""


def disk_error(owner: str, error: OSError, path: Path) -> SinkError:
    """Return the SinkError for an error of the disk: a SinkOutage if it may pass. path: where the error names none."""
    kind = SinkError if error.errno in _LASTING or isinstance(error, _FsyncError) else SinkOutage
    return kind(owner, f"{error.filename or path}: {_reason_of(error)}")


class AppendFile:
    """An append-only file with one owner and one task that writes; asyncio only, since aiofiles is.

    Every method raises SinkError with the path and the system's reason, SinkOutage where it may pass; a failed one may
    be tried again, but after a failed fsync. Cancellation waits until the call under way has returned, so that `length`
    is always true.
    """

    def __init__(self, path: Path, owner: str) -> None:
        """owner: the sink's name, for messages."""
        self.path, self.owner = path, owner
        self.length = 0
        """Bytes in the file."""
        self._handle: AsyncFileIO | None = None
        self._unsynced_folders: list[Path] = []  # whose new entries may not be durable
        self._is_dirty = False  # whether there is something to sync
        self._is_torn = False  # whether part of a failed write may follow after `length`
        self._lost: SinkError | None = None  # what every call raises since an fsync failed

    @property
    def is_open(self) -> bool:
        return self._handle is not None

    @property
    def is_device(self) -> bool:
        """Whether it keeps nothing of what is written."""
        return not stat.S_ISREG(os.fstat(self._opened().fileno()).st_mode)

    async def open(self) -> None:
        """Create the file and its folders where missing and claim it. HeldError when another process has it."""
        with self._naming_errors(), anyio.CancelScope(shield=True):
            self._unsynced_folders = await to_thread.run_sync(_make_folders, self.path)
            # Unbuffered: a write that fails says so itself, and leaves nothing that a later flush would write.
            handle = await aiofiles.open(self.path, "a+b", buffering=0)
            try:
                self.length = await to_thread.run_sync(_claim, handle.fileno(), self.path)
            except BaseException:
                await handle.close()
                raise
        self._handle = handle
        # Dirty from the start: what an earlier process wrote may not be durable.
        self._is_dirty, self._is_torn, self._lost = True, False, None

    async def head(self, size: int) -> bytes:
        """Return the first bytes of the file, at most `size`."""
        with self._naming_errors():
            return await to_thread.run_sync(os.pread, self._opened().fileno(), size, 0)

    async def truncate(self, length: int) -> None:
        """Cut everything from byte `length` on."""
        with self._naming_errors(), anyio.CancelScope(shield=True):
            await self._cut(length)

    async def end_line(self) -> None:
        """End an unterminated last line, so that what follows starts on a line of its own."""
        if self.length == 0:
            return
        with self._naming_errors():
            last = await to_thread.run_sync(os.pread, self._opened().fileno(), 1, self.length - 1)
        if last != b"\n":
            await self.write(b"\n")

    async def write(self, payload: bytes) -> None:
        """Append all of `payload`, or, when that fails, nothing of it."""
        if not payload:
            return
        self._check_not_lost()
        with self._naming_errors(), anyio.CancelScope(shield=True):
            if self._is_torn:
                await self._cut(self.length)
            # Before the write: part of it may be in the file, however it ends.
            self._is_dirty = self._is_torn = True
            try:
                await self._put(payload)
            except OSError:
                with contextlib.suppress(OSError):
                    await self._cut(self.length)
                raise
        self._is_torn = False
        self.length += len(payload)

    async def sync(self) -> int:
        """Make what was written durable, a new file's name included. Returns the length that is durable.

        Not to be called while the file is renamed or closed. Raises SinkError when an fsync failed, and ever after.
        """
        self._check_not_lost()
        length, fd = self.length, self._opened().fileno()
        if not self._is_dirty:
            return length
        try:
            with anyio.CancelScope(shield=True):
                with self._naming_errors():
                    await to_thread.run_sync(_sync, fd, self._unsynced_folders)
        except _FsyncError as error:
            problem = f"{self.path}: what was written since the last sync may be lost: {_reason_of(error)}"
            self._lost = SinkError(self.owner, problem)
            raise self._lost from error
        self._unsynced_folders = []
        # A write may have gone on during the fsync.
        self._is_dirty = self._is_torn or self.length != length
        return length

    async def rename(self, path: Path) -> None:
        """Give the file another name in its folder, durably. Raises SinkError, also when that name is taken.

        When an fsync failed, that is final, as with `sync`; anything else may be tried again.
        """
        self._check_not_lost()
        if self.path != path:
            with self._naming_errors(), anyio.CancelScope(shield=True):
                await to_thread.run_sync(_rename, self.path, path)
            self.path, self._unsynced_folders = path, [path.parent]
            self._is_dirty = True
        await self.sync()

    async def close(self) -> None:
        """Give the file back. Does nothing when it is not open."""
        handle, self._handle = self._handle, None
        if handle is None:
            return
        with self._naming_errors(), anyio.move_on_after(CLOSE_SECONDS, shield=True):
            await handle.close()

    async def _put(self, payload: bytes) -> None:
        handle = self._opened()
        written = await handle.write(payload)
        while written < len(payload):
            written += await handle.write(memoryview(payload)[written:])

    async def _cut(self, length: int) -> None:
        if not self.is_device:
            await to_thread.run_sync(os.ftruncate, self._opened().fileno(), length)
        self.length, self._is_torn, self._is_dirty = length, False, True

    def _opened(self) -> AsyncFileIO:
        if self._handle is None:
            raise SinkError(self.owner, f"{self.path} is not open")
        return self._handle

    def _check_not_lost(self) -> None:
        if self._lost is not None:
            raise self._lost

    @contextlib.contextmanager
    def _naming_errors(self) -> Iterator[None]:
        try:
            yield
        except _FsyncError:
            raise
        except OSError as error:
            raise disk_error(self.owner, error, self.path) from error


class _FsyncError(OSError):
    """An fsync failed, after which the system may have thrown data away and forgotten that it did."""


def _reason_of(error: OSError) -> str:
    return error.strerror or str(error)


def _make_folders(path: Path) -> list[Path]:
    """Create the folders above `path`. Returns those that have, or may have, a new entry."""
    changed = [path.parent]
    while not changed[-1].exists():
        changed.append(changed[-1].parent)
    path.parent.mkdir(parents=True, exist_ok=True)
    return changed


def _claim(fd: int, path: Path) -> int:
    """Lock the file for this process and return its length; a device is anybody's and has none."""
    status = os.fstat(fd)
    if stat.S_ISCHR(status.st_mode):
        return 0
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "neither a file nor a device; to write to a pipe use the sink stdout", str(path))
    try:
        # The system drops the lock with the process, also when that is killed.
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise HeldError(f"{path} is being written by {_holder(status)}; stop that, or choose another path") from None
    # Looked up again: the last holder may have written after the first look.
    return os.fstat(fd).st_size


def _rename(old: Path, new: Path) -> None:
    """Rename a file that only this process names, so that what is there can't come in between."""
    if new.exists():
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(new))
    # It would replace another file without a word, hence the look before.
    os.rename(old, new)


def _holder(status: os.stat_result) -> str:
    """Return which process holds the lock on a file, as text.

    Linux lists locks so: `1: FLOCK ADVISORY WRITE <pid> <device>:<inode> 0 EOF`.
    """
    wanted = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    with contextlib.suppress(OSError):
        for line in Path("/proc/locks").read_text().splitlines():
            fields = line.split()
            if fields[1:2] == ["FLOCK"] and fields[5] == wanted:
                return "this process" if fields[4] == str(os.getpid()) else f"process {fields[4]}"
    return "another process"


def _sync(fd: int, folders: list[Path]) -> None:
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        return
    _fsync(fd)
    for folder in folders:
        sync_folder(folder)


def sync_folder(folder: Path) -> None:
    """Make durable which names are in a folder. Raises OSError."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        _fsync(fd)
    except _FsyncError as error:
        if error.errno != errno.EINVAL:  # some network file systems have no fsync of folders
            raise
    finally:
        os.close(fd)


def _fsync(fd: int) -> None:
    try:
        os.fsync(fd)
    except OSError as error:
        raise _FsyncError(error.errno, error.strerror) from error
