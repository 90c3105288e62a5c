"""A task that reads ahead while an `async with` lasts, and ends with every handle it holds, however that is left.

state     while                             it turns into
new       not entered yet                   reading, when entered
reading   the source is read                ended, when it has ended or failed; left
ended     what was read is given out        left
left      the `async with` is over          nothing: what is read is read once
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from types import TracebackType
from typing import Literal, Self

import anyio
from anyio.abc import TaskGroup

ReadAheadState = Literal["new", "reading", "ended", "left"]


class ReadAhead(ABC):
    """What `microbatches` returns, as far as reading goes on beside the program."""

    def __init__(self) -> None:
        self._state: ReadAheadState = "new"
        self._tasks: TaskGroup | None = None
        self._error: Exception | None = None
        """The error that the source raised while it was read."""
        self._late_error: Exception | None = None
        """The error that it raised as it was left."""

    async def __aenter__(self) -> Self:
        if self._tasks is not None:
            raise RuntimeError("microbatches: entered twice, but what it reads is read once")
        self._tasks = anyio.create_task_group()
        await self._tasks.__aenter__()
        self._state = "reading"
        self._tasks.start_soon(self._run)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._tasks is None:
            return
        self._state = "left"
        self._tasks.cancel_scope.cancel()
        # Before the group is left: a source that waits for room is shielded from its cancellation.
        self._stopped()
        # The task group does not get an error of the body: it would wrap it.
        await self._tasks.__aexit__(None, None, None)
        if self._late_error is not None:
            raise self._late_error

    def __aiter__(self) -> Self:
        return self

    @property
    def _is_open(self) -> bool:
        """Whether there may be more to give out."""
        return self._state in ("reading", "ended")

    def _ending(self) -> Exception:
        """Return what ends the iteration."""
        if not self._is_open:
            return RuntimeError("microbatches: to be iterated inside its `async with`")
        return self._error or StopAsyncIteration()

    @abstractmethod
    async def _read(self) -> None:
        """Read to the end."""

    @abstractmethod
    def _stopped(self) -> None:
        """Take note that nothing more is read, and wake the task that waits for it."""

    async def _run(self) -> None:
        try:
            if self._state == "reading":  # it may have been left before this task had its turn
                await self._read()
        except Exception as error:
            if self._state == "left":
                self._late_error = error
            else:
                self._error = error
        if self._state == "reading":
            self._state = "ended"
        self._stopped()
