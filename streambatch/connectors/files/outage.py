"""Tries again what can't be read at the moment, until it can: an outage is not bad data."""

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
# What the system says of the path itself. An outage lies elsewhere: in a disk, a network, or a permission.
_LASTING = (*ABSENT, errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL, errno.EISDIR, errno.ENXIO)


def is_passing(error: OSError) -> bool:
    """Whether an attempt may succeed later while the config stays as it is."""
    return error.errno not in _LASTING


class Outages:
    """The files and folders of one source that can't be read at the moment.

    A source has two states: it is readable, or out. It goes out with the first file or folder that can't be read, and
    is readable again once the last of them can. Only these two transitions are observed, in `_update`, so that a share
    of a thousand files that goes away is one event.
    """

    def __init__(self, source: str, observer: Observer) -> None:
        self._source, self._observer = source, observer
        self._failures: dict[str, Backoff] = {}
        """Of each file that can't be read."""
        self._unseen: Mapping[str, OSError] = {}
        """The paths that the last look could not see."""
        self._blind_looks = Backoff(RETRIES, random)
        self._is_out = False

    @property
    def lasts(self) -> bool:
        """Whether something can't be read at the moment."""
        return self._is_out

    def failed(self, what: str, path: str, error: OSError) -> float:
        """Count a failed read. Returns the seconds to wait before the next attempt."""
        backoff = self._failures.setdefault(what, Backoff(RETRIES, random))
        self._update(path, error)
        return backoff.failed()

    def cured(self, what: str) -> None:
        """Forget the failures of what was read, or need not be read any more."""
        if self._failures.pop(what, None) is not None:
            self._update()

    def looked(self, unseen: Mapping[str, OSError]) -> float:
        """Take in which paths could not be looked at, of all there are. Returns the seconds to wait; 0 for none."""
        self._unseen = unseen
        self._update(*next(iter(unseen.items()), ("", None)))
        if unseen:
            return self._blind_looks.failed()
        self._blind_looks.succeeded()
        return 0.0

    async def hold(self, path: str, attempt: Callable[[], Awaitable[T]]) -> T:
        """Try until there is no outage. Raises every other error of the attempt."""
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

    def _update(self, path: str = "", error: OSError | None = None) -> None:
        """Tell the observer if the source went out, for the reason given, or is readable again."""
        was_out, self._is_out = self._is_out, bool(self._failures or self._unseen)
        if self._is_out and not was_out and error is not None:
            problem = f"{path}: {error.strerror}; it is tried again until it can be read"
            self._observer.source_failed(self._source, SourceError(self._source, problem))
        elif was_out and not self._is_out:
            self._observer.source_recovered(self._source)
