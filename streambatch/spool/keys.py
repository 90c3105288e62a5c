"""The idempotency keys of a spool, for as long as they count: in memory, and in files once their segments are gone.

A key is first in its request's block. Before a segment is removed its keys are in a key file, durably; an entry there
stands for itself, so that a torn or damaged one costs no other. At most KEYS_MAX are remembered, the youngest.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterable
from hashlib import blake2b
from pathlib import Path
from zlib import crc32

from streambatch.spool.blocks import KEY_BYTES, RequestKey
from streambatch.storage.files import sync_folder

KEYS_MAX = 1 << 18
"""Keys remembered, at about 250 bytes of memory and 52 of disk each."""
KEYS_PER_FILE = 1 << 14

_ENTRY = struct.Struct(f"<{KEY_BYTES}s{KEY_BYTES}sQd")
_CRC = struct.Struct("<I")
_ENTRY_BYTES = _ENTRY.size + _CRC.size
_NAME = re.compile(r"(\d{10})\.keys")


def hashed(text: str) -> bytes:
    """Return the hash that stands for an idempotency key."""
    return blake2b(text.encode(), digest_size=KEY_BYTES).digest()


class SpoolKeys:
    """The keys of one spool. Its methods that touch files block: call them in a thread, one at a time.

    Times are wall seconds.
    """

    def __init__(self, folder: Path, window: float) -> None:
        """window: seconds for which a key counts."""
        self._folder, self._window = folder, window
        self._known: dict[bytes, tuple[float, RequestKey]] = {}  # with its time, oldest first
        self._files: list[tuple[Path, int, float]] = []  # with the number of entries and the newest one's time
        self._number = 0  # of the file that is written

    def find(self, key: bytes, now: float) -> RequestKey | None:
        """Return a key that still counts."""
        found = self._known.get(key)
        return found[1] if found is not None and found[0] + self._window > now else None

    def add(self, at: float, key: RequestKey) -> None:
        """Remember a key, and forget those that no longer count."""
        # Out and in again: a dict keeps a key at its first place, and the oldest must be first.
        self._known.pop(key.key, None)
        self._known[key.key] = (at, key)
        while self._known:
            oldest = next(iter(self._known))
            if len(self._known) <= KEYS_MAX and self._known[oldest][0] + self._window > at:
                break
            del self._known[oldest]

    def load(self) -> None:
        """Read the key files. Raises OSError."""
        matches = [(_NAME.fullmatch(name), name) for name in os.listdir(self._folder)]
        # In the order in which they were written: of a key that is there twice, the younger entry counts.
        for number, path in sorted((int(match[1]), self._folder / name) for match, name in matches if match):
            entries = _entries(path.read_bytes())
            for at, key in entries:
                self.add(at, key)
            self._files.append((path, len(entries), max((at for at, _ in entries), default=0.0)))
            self._number = number
        # A file that was found is never appended to: its end may be torn.
        self._number += 1

    def save(self, keys: Iterable[tuple[float, RequestKey]], now: float) -> None:
        """Store keys durably, those that still count, and remove files that don't. Raises OSError."""
        entries = [_packed(at, key) for at, key in keys if at + self._window > now]
        if entries:
            self._append(entries, now)
        younger = sum(count for _, count, _ in self._files)
        while self._files:
            path, count, newest = self._files[0]
            younger -= count
            # A file goes once none of its keys counts, or the files after it hold as many keys as are remembered.
            if younger < KEYS_MAX and newest + self._window > now:
                break
            path.unlink(missing_ok=True)
            del self._files[0]

    def _append(self, entries: list[bytes], now: float) -> None:
        """Write entries after the others of this process; files of earlier ones are not written again."""
        path = self._folder / f"{self._number:010}.keys"
        is_new = not self._files or self._files[-1][0] != path
        count = 0 if is_new else self._files[-1][1]
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            # After the entries that are whole: what a failed write left there is overwritten.
            write_whole(fd, b"".join(entries), count * _ENTRY_BYTES)
            os.fsync(fd)
        finally:
            os.close(fd)
        # The keys are nowhere else once their segments are removed: a crash must not lose the file's name.
        if is_new:
            sync_folder(self._folder)
        else:
            del self._files[-1]
        self._files.append((path, count + len(entries), now))
        if count + len(entries) >= KEYS_PER_FILE:
            self._number += 1


def write_whole(fd: int, data: bytes, offset: int) -> None:
    """Write all of `data` at an offset. Raises OSError."""
    written = os.pwrite(fd, data, offset)
    # A write may be short, as on a disk that is almost full; the next one then raises the reason.
    while written < len(data):
        written += os.pwrite(fd, memoryview(data)[written:], offset + written)


def _packed(at: float, key: RequestKey) -> bytes:
    entry = _ENTRY.pack(key.key, key.digest, key.received, at)
    return entry + _CRC.pack(crc32(entry))


def _entries(data: bytes) -> list[tuple[float, RequestKey]]:
    found = []
    # All entries have one size: the next is found after a damaged one, and a torn last one is left out.
    for start in range(0, len(data) - _ENTRY_BYTES + 1, _ENTRY_BYTES):
        if _CRC.unpack_from(data, start + _ENTRY.size)[0] == crc32(data[start : start + _ENTRY.size]):
            key, digest, received, at = _ENTRY.unpack_from(data, start)
            found.append((at, RequestKey(key, digest, received)))
    return found
