"""What `batched` needs of the event loop it runs on: the time, a turn to wait for, and a task that no caller owns.

anyio has no such task, and a caller's own won't do: asyncio cancels a task natively (`asyncio.timeout`, TaskGroup), and
no scope shields what runs in it. The loop's own future or event costs a fifth of anyio's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Generator
from contextvars import Context
from typing import Any, Protocol

import anyio

Body = Callable[[], Coroutine[Any, Any, None]]


class Turn(Protocol):
    """An awaitable on which one task waits until another ends it."""

    def __await__(self) -> Generator[Any, Any, None]: ...


class Task(Protocol):
    """A task that outlives the task that started it."""

    def cancel(self) -> None:
        """Request its end, by the exception that its event loop raises in a cancelled task."""
        ...

    async def ended(self) -> None:
        """Wait for its end, cancelled or not."""
        ...


class EventLoop(Protocol):
    """The loop that runs now."""

    def now(self) -> float:
        """Return the loop's own time in seconds, virtual where the loop's is; deadlines are in this time."""
        ...

    def turn(self) -> Turn: ...

    def end_turn(self, turn: Any) -> None:
        """Wake the task that waits for this turn, if it still does."""
        ...

    def spawn(self, body: Body, context: Context, done: Callable[[], None]) -> Task:
        """Start `body`, which raises nothing but its cancellation, in a task of its own.

        `done` is called once it has ended, even if it never got to run.
        """
        ...


def loop_token() -> object:
    """Return what stands for the running event loop, asyncio's or trio's. Raises RuntimeError when there is none."""
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return _trio_token()
    # Trio as a guest runs within callbacks of an asyncio loop, where no task is current.
    return loop if asyncio.current_task(loop) is not None else _trio_token()


def event_loop(token: object) -> EventLoop:
    """Return the running event loop that `token` stands for."""
    return AsyncioLoop(token) if isinstance(token, asyncio.AbstractEventLoop) else TrioLoop()


def _trio_token() -> object:
    from trio.lowlevel import current_trio_token

    return current_trio_token()


class AsyncioLoop:
    """asyncio's, or one made like it."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.now = loop.time
        self.turn: Callable[[], asyncio.Future[None]] = loop.create_future

    def end_turn(self, turn: asyncio.Future[None]) -> None:
        # A caller that was cancelled has cancelled its future as well.
        if not turn.done():
            turn.set_result(None)

    def spawn(self, body: Body, context: Context, done: Callable[[], None]) -> Task:
        task = self._loop.create_task(body(), context=context)
        # A task that is cancelled before its first step never runs, and no `finally` in it does.
        task.add_done_callback(lambda _: done())
        return AsyncioTask(task)


class AsyncioTask:
    """A task that is cancelled once for each call, as asyncio's tasks are."""

    def __init__(self, task: asyncio.Task[None]) -> None:
        self._task = task

    def cancel(self) -> None:
        self._task.cancel()

    async def ended(self) -> None:
        with anyio.CancelScope(shield=True):
            while not self._task.done():
                try:
                    await asyncio.wait([self._task])
                # The waiting caller was cancelled natively, which no scope shields from. Its task is cancelled once
                # more, as it would be in the caller's place, and still waited for.
                except asyncio.CancelledError:
                    self._task.cancel()


class TrioLoop:
    """trio's."""

    def __init__(self) -> None:
        from trio import Event, current_time
        from trio.lowlevel import spawn_system_task

        self.now = current_time
        self._event, self._spawn = Event, spawn_system_task

    def turn(self) -> TrioTurn:
        return TrioTurn(self._event())

    def end_turn(self, turn: TrioTurn) -> None:
        turn.event.set()

    def spawn(self, body: Body, context: Context, done: Callable[[], None]) -> Task:
        task = TrioTask(body, done)
        self._spawn(task.run, context=context)
        return task


class TrioTurn:
    """An event that can be awaited."""

    __slots__ = ("event",)

    def __init__(self, event: Any) -> None:
        self.event = event

    def __await__(self) -> Generator[Any, Any, None]:
        return self.event.wait().__await__()  # type: ignore[no-any-return]  # trio's Event, which is imported late


class TrioTask:
    """A system task: of its own, it may raise its cancellation only."""

    def __init__(self, body: Body, done: Callable[[], None]) -> None:
        self._body, self._done = body, done
        self._scope, self._ended = anyio.CancelScope(), anyio.Event()

    def cancel(self) -> None:
        self._scope.cancel()

    async def ended(self) -> None:
        with anyio.CancelScope(shield=True):
            await self._ended.wait()

    async def run(self) -> None:
        try:
            with self._scope:
                await self._body()
        finally:
            self._done()
            self._ended.set()
