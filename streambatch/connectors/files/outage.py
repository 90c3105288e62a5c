"""What can't be read at the moment is tried again until it can: an outage is not bad data.

The observer is told once when something of a source can't be read, and once when all of it can.
"""

from __future__ import annotations

import errno
import random
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeVar

import anyio

from streambatch.core.errors import SourceError
from streambatch.core.events import Observer

T = TypeVar("T")
RETRY_SECONDS, RETRY_SECONDS_MAX = 0.1, 5.0
ABSENT = (errno.ENOENT, errno.ENOTDIR)
"""There is no such file: that is an answer, and no outage."""
_LASTING = (*ABSENT, errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL, errno.EISDIR, errno.ENXIO)


def wait_seconds(failures: int, share: float) -> float:
    """Return how long to wait after so many failures in a row, at least one. share: from 0 to 1, by chance."""
    longest = RETRY_SECONDS_MAX
    if failures < 30:
        longest = min(longest, RETRY_SECONDS * 2.0 ** (failures - 1))
    return longest * (1 + share) / 2


def is_passing(error: OSError) -> bool:
    """Tell whether what failed may go well later though nobody changes the config."""
    return error.errno not in _LASTING


class Outages:
    """What of one source can't be read."""

    def __init__(self, source: str, observer: Observer) -> None:
        self._source, self._observer = source, observer
        self._failures: dict[str, int] = {}
        self._unseen: Mapping[str, OSError] = {}
        self._blind_looks = 0

    @property
    def lasts(self) -> bool:
        """Whether something can't be read at the moment."""
        return bool(self._failures or self._unseen)

    def failed(self, what: str, path: str, error: OSError) -> float:
        """Learn that something could not be read. Returns the seconds to wait before it is tried again."""
        self._tell(path, error)
        self._failures[what] = self._failures.get(what, 0) + 1
        return wait_seconds(self._failures[what], random.random())

    def cured(self, what: str) -> None:
        """Learn that something was read, or need not be read any more."""
        if self._failures.pop(what, 0) and not self._unseen and not self._failures:
            self._observer.source_recovered(self._source)

    def looked(self, unseen: Mapping[str, OSError]) -> float:
        """Learn which paths could not be looked at, of all there are. Returns the seconds to wait if there are any."""
        for path, error in unseen.items():
            self._tell(path, error)
            break
        was_out, self._unseen = bool(self._unseen), unseen
        if was_out and not unseen and not self._failures:
            self._observer.source_recovered(self._source)
        self._blind_looks = self._blind_looks + 1 if unseen else 0
        return wait_seconds(max(1, self._blind_looks), random.random())

    async def hold(self, path: str, attempt: Callable[[], Awaitable[T]]) -> T:
        """Try until there is no outage. Raises what the attempt raises else."""
        while True:
            try:
                result = await attempt()
            except OSError as error:
                if not is_passing(error):
                    raise
                seconds = self.failed(path, path, error)
            else:
                self.cured(path)
                return result
            await anyio.sleep(seconds)

    def _tell(self, path: str, error: OSError) -> None:
        if not self._failures and not self._unseen:
            problem = f"{path}: {error.strerror}; it is tried again until it can be read"
            self._observer.source_failed(self._source, SourceError(self._source, problem))
