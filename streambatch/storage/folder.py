"""The state folder and its holder: one process at a time, by a lock that the system drops with its process."""

from __future__ import annotations

import fcntl
import os
import time
from contextlib import suppress
from pathlib import Path

from streambatch.core.errors import ConfigError, ConfigProblem, HeldError

LOCK = "lock"
CLAIM_SECONDS = 0.1
"""How long a claim waits for the lock: `held_by`, called in another process, holds it for a moment."""
_CLAIM_TRIES = 5


class StateFolder:
    """Creates the state folder and keeps others out of it while it is entered.

    It may be entered again while it is: the last to leave gives the folder back. Another StateFolder of the same path
    is another owner, in this process too. A lock file left behind by a process that was killed holds nothing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: int | None = None
        self._entered = 0

    def __enter__(self) -> StateFolder:
        """Claim the folder.

        Raises HeldError that names the process which holds it, ConfigError when the folder can't be used.
        """
        if self._lock is None:
            self._lock = self._claim()
        self._entered += 1
        return self

    def __exit__(self, *_: object) -> None:
        self._entered -= 1
        if not self._entered and self._lock is not None:
            # The file stays: were it removed, two processes could each hold a lock, one on the old file and one on a
            # new one.
            lock, self._lock = self._lock, None
            os.close(lock)

    def _claim(self) -> int:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = os.open(self.path / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise _unusable(error, error.filename) from error
        try:
            self._take(lock)
            # Only once it is held: until then the file names its holder.
            os.truncate(lock, 0)
            os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
        except BaseException as error:
            os.close(lock)
            if isinstance(error, OSError):
                raise _unusable(error, self.path / LOCK) from error
            raise
        return lock

    def _take(self, lock: int) -> None:
        for _ in range(_CLAIM_TRIES):
            with suppress(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            time.sleep(CLAIM_SECONDS / _CLAIM_TRIES)  # nothing runs yet that this could hold up
        raise HeldError(
            f"state folder {self.path} is held by process {_named_in(lock)}; stop that, or choose another state_dir"
        )


def held_by(folder: Path) -> str | None:
    """Return the id of the process that holds a state folder, `unknown` if it left none; None if none does."""
    try:
        lock = os.open(folder / LOCK, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        # Shared, so that several processes may look at once; closing the file gives it back.
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _named_in(lock)
    finally:
        os.close(lock)
    return None


def _unusable(error: OSError, path: object) -> ConfigError:
    found = f"{path} ({str(error.strerror).lower()})"
    return ConfigError([ConfigProblem("state_dir", found, "a folder that can be made and written")])


def _named_in(lock: int) -> str:
    return os.pread(lock, 32, 0).decode(errors="replace").strip() or "unknown"
