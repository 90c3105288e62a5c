"""Calls of a spool that need space on disk: while the disk is full they wait and are made again.

A failed fsync is never tried again: what was written since the last one may be lost. The disk is in one of three
states:

| state | what happens | next | the observer is told |
| --- | --- | --- | --- |
| writable | a call finds no space | full | `source_failed` |
| full | a call succeeds | writable | `source_recovered` |
| full | a call finds no space again | full | nothing |
| full | a stop hurries, and LAST_SECONDS later a call finds no space | given up: its error is raised | nothing |

A call that can wait for the next start, such as the removal of what is acked, is given up once a stop hurries.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from math import inf
from pathlib import Path
from random import random
from typing import TypeVar

import anyio
from anyio import to_thread

from streambatch.core.clock import Clock
from streambatch.core.errors import SourceError
from streambatch.core.events import Observer
from streambatch.core.retry import Backoff, RetryPolicy
from streambatch.spool.folder import SpoolSyncError

RETRIES = RetryPolicy(longest_seconds=5.0, jitter=0.0)
"""A full disk is tried again until there is space, and no other spool waits for the same moment."""
LAST_SECONDS = 2.0
"""How long a stop, also a hard one, waits for space on a full disk."""
# A quota that is used up is a full disk to those who write.
FULL = (errno.ENOSPC, errno.EDQUOT)

T = TypeVar("T")


class SpoolDisk:
    """The disk under the spool of one source."""

    def __init__(self, source: str, path: Path, clock: Clock, observer: Observer) -> None:
        self._source, self._path, self._clock, self._observer = source, path, clock, observer
        self._hurried, self._last_try_at = anyio.Event(), inf
        self.outage: str | None = None
        """Why nothing can be stored for now."""

    @property
    def is_hurried(self) -> bool:
        return self._hurried.is_set()

    def hurry(self) -> None:
        """Wait for space for LAST_SECONDS from now, and no longer: the run stops."""
        if not self.is_hurried:
            self._last_try_at = self._clock.monotonic() + LAST_SECONDS
            self._hurried.set()

    async def do(self, work: Callable[[], T], *, can_wait: bool = False) -> T | None:
        """Do something that needs space; while the disk is full, wait and try again.

        Returns None if it could wait and a stop didn't. Raises SourceError, and OSError for any other trouble or, in
        a hurry, a disk that stays full.
        """
        backoff = Backoff(RETRIES, random)
        while True:
            try:
                done = await to_thread.run_sync(work)
            except SpoolSyncError as error:
                raise self._lost_some(error) from error
            except OSError as error:
                if error.errno not in FULL:
                    raise
                if self.is_hurried and can_wait:
                    return None
                self._hold(error)
                if self._clock.monotonic() >= self._last_try_at:
                    raise
            else:
                self._go_on()
                return done
            await self._pause(backoff.failed())

    async def _pause(self, seconds: float) -> None:
        if self.is_hurried:
            # There are LAST_SECONDS in all: too few for waits that grow.
            await anyio.sleep(RETRIES.first_seconds)
        else:
            # A stop ends this wait, which may be long.
            with anyio.move_on_after(seconds):
                await self._hurried.wait()

    def _hold(self, error: OSError) -> None:
        if self.outage is None:
            self.outage = error.strerror or str(error)
            self._observer.source_failed(self._source, self.failure(error))

    def _go_on(self) -> None:
        if self.outage is not None:
            self.outage = None
            self._observer.source_recovered(self._source)

    def failure(self, error: OSError) -> SourceError:
        """Return the SourceError for an error of the disk."""
        return SourceError(self._source, f"its spool: {error.filename or self._path}: {error.strerror or error}")

    def _lost_some(self, error: SpoolSyncError) -> SourceError:
        return SourceError(
            self._source, f"its spool: what was not yet said to be safe may be lost: {error}; start again"
        )
