"""The base of the suites: run a test on an event loop, and check that a part leaves nothing behind.

Tests are plain methods, so that no pytest plugin is needed. A failure says what was expected of the part.
"""

from __future__ import annotations

import gc
import os
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, NoReturn
from unittest import SkipTest

import anyio

DESCRIPTORS = Path("/proc/self/fd")
SETTLE_ROUNDS, SETTLE_SECONDS = 150, 0.01
"""Number of checks, and time between two, for handles and tasks that are being closed."""


class Conformance:
    """A suite. backends: the event loops that the part runs on: `asyncio`, `trio` or both.

    patience_seconds: time after which a test that hangs fails.
    """

    backends: ClassVar[Sequence[str]] = ("asyncio",)
    patience_seconds: ClassVar[float] = 30.0

    def _run(self, test: Callable[[Path], Awaitable[None]], folder: Path) -> None:
        """Run an async test on every backend, with a new folder for each."""
        for backend in self.backends:
            # Files that one backend's test leaves behind must not help the next.
            own = folder / backend
            own.mkdir()
            with plain_errors():
                anyio.run(partial(_in_time, test, own, self.patience_seconds), backend=backend)


def skip(why: str) -> NoReturn:
    """Skip a test that has no meaning for the part."""
    raise SkipTest(why)


class plain_errors:  # noqa: N801  # reads as a statement
    """Raises the first error of a group alone, so that the report of a failed test shows it."""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        inner = error
        while isinstance(inner, BaseExceptionGroup):
            inner = inner.exceptions[0]
        if inner is not None and inner is not error:
            raise inner


async def _in_time(test: Callable[[Path], Awaitable[None]], folder: Path, seconds: float) -> None:
    with anyio.move_on_after(seconds) as patience:
        await test(folder)
    assert not patience.cancelled_caught, f"it hangs: not done within {seconds:g} s"


@asynccontextmanager
async def nothing_left_behind(part: object) -> AsyncIterator[None]:
    """Check that the code inside leaves no task, file or socket open, nor leaves one to the garbage collector."""
    # What earlier tests left is not to be blamed on this part.
    gc.collect()
    opened: set[Any] = set()
    running: set[Any] = set()
    # Open files by number and target: a number that was closed may be given to another file.
    descriptors, tasks = _descriptors(), _tasks()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ResourceWarning)
        yield
        # Transports close their sockets some turns of the loop after `close` was called.
        for _ in range(SETTLE_ROUNDS):
            opened, running = _descriptors() - descriptors, _tasks() - tasks
            if not opened and not running:
                break
            await anyio.sleep(SETTLE_SECONDS)
        # A handle that is dropped and not closed warns only when it is collected.
        gc.collect()
    what = type(part).__name__
    assert not running, f"{what} leaves tasks running: {running}"
    assert not opened, f"{what} leaves open: {opened}"
    lost = [str(warning.message) for warning in caught if issubclass(warning.category, ResourceWarning)]
    assert not lost, f"{what} leaves it to the garbage collector to close: {lost}"


async def turns(count: int) -> None:
    """Let all other tasks run, `count` times."""
    for _ in range(count):
        await anyio.lowlevel.checkpoint()


async def settled() -> None:
    """Wait long enough for something to happen that must not happen."""
    for _ in range(20):
        await anyio.sleep(0.005)


def _descriptors() -> set[Any]:
    if not DESCRIPTORS.is_dir():
        return set()
    found = set()
    for name in os.listdir(DESCRIPTORS):
        with suppress(OSError):
            found.add((name, os.readlink(DESCRIPTORS / name)))
    return found


def _tasks() -> set[Any]:
    return {(task.id, task.name) for task in anyio.get_running_tasks()}
