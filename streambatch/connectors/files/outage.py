"""What can't be read at the moment is tried again until it can: an outage is not bad data.

The observer is told once when something of a source can't be read, and once when all of it can.
"""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable, Mapping
from random import random
from typing import TypeVar

import anyio

from streambatch.core.errors import SourceError
from streambatch.core.events import Observer
from streambatch.core.retry import Backoff, RetryPolicy

T = TypeVar("T")
RETRIES = RetryPolicy(longest_seconds=5.0, jitter=0.5)
"""What can't be read is tried again for ever."""
ABSENT = (errno.ENOENT, errno.ENOTDIR)
"""There is no such file: that is an answer, and no outage."""
_LASTING = (*ABSENT, errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL, errno.EISDIR, errno.ENXIO)


def is_passing(error: OSError) -> bool:
    """Tell whether what failed may go well later though nobody changes the config."""
    return error.errno not in _LASTING


class Outages:
    """What of one source can't be read."""

    def __init__(self, source: str, observer: Observer) -> None:
        self._source, self._observer = source, observer
        self._failures: dict[str, Backoff] = {}
        self._unseen: Mapping[str, OSError] = {}
        self._blind_looks = Backoff(RETRIES, random)

    @property
    def lasts(self) -> bool:
        """Whether something can't be read at the moment."""
        return bool(self._failures or self._unseen)

    def failed(self, what: str, path: str, error: OSError) -> float:
        """Learn that something could not be read. Returns the seconds to wait before it is tried again."""
        self._tell(path, error)
        if what not in self._failures:
            self._failures[what] = Backoff(RETRIES, random)
        return self._failures[what].failed()

    def cured(self, what: str) -> None:
        """Learn that something was read, or need not be read any more."""
        if self._failures.pop(what, None) and not self._unseen and not self._failures:
            self._observer.source_recovered(self._source)

    def looked(self, unseen: Mapping[str, OSError]) -> float:
        """Take in which paths could not be looked at, of all there are. Returns the seconds to wait; 0 for none."""
        for path, error in unseen.items():
            self._tell(path, error)
            break
        was_out, self._unseen = bool(self._unseen), unseen
        if was_out and not unseen and not self._failures:
            self._observer.source_recovered(self._source)
        if unseen:
            return self._blind_looks.failed()
        self._blind_looks.succeeded()
        return 0.0

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
