"""Where the transform runs: in the event loop (`inline`), in worker threads (`thread`), or, for a model whose `score`
is async, as tasks on the loop.

An executor holds at most `capacity` batches, running or waiting for a worker; whoever submits sees to that. Every
batch submitted comes back once, through `done`, on the event loop, with its outcome or with the error that ends the
run; batches come back in any order. What numpy would warn of while a batch is scored is not
worth a warning: numbers that are not finite become rejects.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from types import TracebackType
from typing import Annotated, Any, Literal, Protocol, Self

import anyio
import numpy as np
from anyio.abc import TaskGroup
from pydantic import Field

from streambatch.options import options
from streambatch.records import Batch, Outcome
from streambatch.scoring.transform import Now, Prepared, Transform

Done = Callable[[Batch, Outcome | Exception], None]


@options
class Workers:
    """Where batches are scored, and how many at once."""

    executor: Literal["inline", "thread"] = "thread"
    """`inline`: in the event loop, least overhead. `thread`: beside it, so that reading and writing go on meanwhile."""
    count: Annotated[int, Field(ge=1, le=256)] = 1
    """Batches scored at once; with `inline`, of an async model only."""


class Executor(Protocol):
    """Runs the transform."""

    capacity: int

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def submit(self, batch: Batch) -> None:
        """Take a batch; `done` is told of it sooner or later."""
        ...


def make_executor(workers: Workers, transform: Transform, done: Done, now: Now) -> Executor:
    """Return the executor that the options ask for and the model allows."""
    if getattr(transform.model, "is_async", False):
        return TaskExecutor(transform, done, now, workers.count)
    if workers.executor == "inline":
        return InlineExecutor(transform, done, now)
    return ThreadExecutor(transform, done, now, workers.count)


class InlineExecutor:
    """Runs a batch in `submit` itself."""

    def __init__(self, transform: Transform, done: Done, now: Now) -> None:
        self.capacity = 1
        self._transform, self._done, self._now = transform, done, now
        self._quiet = np.errstate(all="ignore")

    async def __aenter__(self) -> Self:
        self._quiet.__enter__()
        return self

    async def __aexit__(self, *exit: Any) -> None:
        self._quiet.__exit__(*exit)

    def submit(self, batch: Batch) -> None:
        batch.stamps.started = self._now()
        try:
            outcome = self._transform.run(batch, self._now)
        except Exception as error:
            self._done(batch, error)
        else:
            self._done(batch, outcome)


class TaskExecutor:
    """Runs each batch of an async model as a task; decoding and encoding happen on the loop."""

    def __init__(self, transform: Transform, done: Done, now: Now, count: int) -> None:
        self._transform, self._done, self._now = transform, done, now
        self.capacity = count
        self._tasks: TaskGroup = anyio.create_task_group()
        self._quiet = np.errstate(all="ignore")

    async def __aenter__(self) -> Self:
        self._quiet.__enter__()
        await self._tasks.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self._tasks.__aexit__(kind, error, trace)
        finally:
            self._quiet.__exit__(kind, error, trace)

    def submit(self, batch: Batch) -> None:
        batch.stamps.started = self._now()
        try:
            prepared = self._transform.prepare(batch, self._now)
        except Exception as error:
            self._done(batch, error)
            return
        self._tasks.start_soon(self._score, batch, prepared)

    async def _score(self, batch: Batch, prepared: Prepared) -> None:
        try:
            scores = await self._transform.score_async(prepared)
            batch.stamps.scored = self._now()
            outcome = self._transform.finish(prepared, scores)
            batch.stamps.encoded = self._now()
        except Exception as error:
            self._done(batch, error)
        else:
            self._done(batch, outcome)


class ThreadExecutor:
    """Runs batches in `count` threads of its own, each with one more batch waiting.

    Threads take batches in order and hand results over in bulk: a busy loop is woken once for several.
    """

    def __init__(self, transform: Transform, done: Done, now: Now, count: int) -> None:
        self._transform, self._done, self._now = transform, done, now
        self.capacity = 2 * count
        self._count = count
        self._waiting: SimpleQueue[Batch | None] = SimpleQueue()
        self._results: deque[tuple[Batch, Outcome | Exception]] = deque()
        self._is_drain_scheduled = False
        self._turn = _Turn()

    async def __aenter__(self) -> Self:
        self._call_soon = _loop_caller()
        self._running = self._count
        self._ended = anyio.Event()
        for number in range(self._count):
            threading.Thread(target=self._work, name=f"streambatch-worker-{number}", daemon=True).start()
        return self

    async def __aexit__(self, *_exit: object) -> None:
        for _ in range(self._count):
            self._waiting.put(None)
        await self._ended.wait()

    def submit(self, batch: Batch) -> None:
        self._waiting.put(batch)

    def _work(self) -> None:
        with np.errstate(all="ignore"):
            self._score_all()
        self._call_soon(self._leave)

    def _score_all(self) -> None:
        while (batch := self._waiting.get()) is not None:
            batch.stamps.started = self._now()
            result: Outcome | Exception
            try:
                result = self._run(batch)
            except Exception as error:
                result = error
            self._results.append((batch, result))
            if not self._is_drain_scheduled:
                self._is_drain_scheduled = True
                self._call_soon(self._drain)

    def _run(self, batch: Batch) -> Outcome:
        if not self._transform.is_ordered:
            return self._transform.run(batch, self._now)
        with self._turn.of(batch.sequence):
            prepared = self._transform.prepare(batch, self._now)
        return self._transform.complete(prepared, self._now)

    def _drain(self) -> None:
        self._is_drain_scheduled = False
        while self._results:
            self._done(*self._results.popleft())

    def _leave(self) -> None:
        self._drain()
        self._running -= 1
        if self._running == 0:
            self._ended.set()


class _Turn:
    """Lets threads through in the order of batches."""

    def __init__(self) -> None:
        self._next = 0
        self._moved = threading.Condition()

    @contextlib.contextmanager
    def of(self, sequence: int) -> Iterator[None]:
        with self._moved:
            self._moved.wait_for(lambda: self._next == sequence)
        try:
            yield
        finally:
            with self._moved:
                self._next += 1
                self._moved.notify_all()


def _loop_caller() -> Callable[[Callable[[], None]], None]:
    """Return a function that any thread may call to have something called soon on the running event loop."""
    try:
        return _unless_closed(asyncio.get_running_loop().call_soon_threadsafe, RuntimeError)
    except RuntimeError:
        import trio

        return _unless_closed(trio.lowlevel.current_trio_token().run_sync_soon, trio.RunFinishedError)


def _unless_closed(
    call_soon: Callable[[Callable[[], None]], object], closed: type[Exception]
) -> Callable[[Callable[[], None]], None]:
    """Ignore a loop that is gone: a thread that a hard stop left behind has nobody to tell."""

    def call(function: Callable[[], None]) -> None:
        with contextlib.suppress(closed):
            call_soon(function)

    return call
