"""Scoring in worker threads, which a call of the model that hangs doesn't stop.

Nothing can end a thread. One whose call takes too long is given up instead: whoever claims a call first, the thread
that comes back from it or the event loop whose patience is over, goes on with its batch, and the other leaves it alone.
A thread that was given up touches nothing any more and ends itself should it come back; until then it hangs, and no
more than `count` of them may.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from queue import SimpleQueue
from types import TracebackType
from typing import Self

import anyio
import numpy as np
from anyio.abc import TaskGroup

from streambatch.core.batches import Batch
from streambatch.core.errors import ModelError
from streambatch.core.outcomes import Outcome
from streambatch.core.retry import TimedOutError
from streambatch.core.units import format_duration
from streambatch.scoring.jobs import Done, Job, Terms

_log = logging.getLogger(__name__)

LEAVE_SECONDS = 2.0
"""How long a run that failed waits for its threads to come back from the model."""


class ThreadExecutor:
    """Runs batches in `count` threads of its own, each with one more batch waiting.

    Threads take batches in order and hand results over in bulk: a busy loop is woken once for several.
    terms: with a timeout.
    """

    def __init__(self, terms: Terms, done: Done, count: int) -> None:
        self.capacity, self.restarts = 2 * count, 0
        self._terms, self._done, self._count = terms, done, count
        self._waiting: SimpleQueue[tuple[Batch, Terms] | None] = SimpleQueue()
        self._results: deque[tuple[Batch, Outcome | Exception]] = deque()
        self._is_drain_scheduled = False
        self._turn = _Turn()
        self._workers: set[_Worker] = set()
        self._numbers = itertools.count()
        self._hanging = self._in_hand = 0
        self._submitted: anyio.Event | None = None
        self._replaced = anyio.Event()
        self._closing = threading.Event()

    async def __aenter__(self) -> Self:
        self._call_soon = _loop_caller()
        self._ended = anyio.Event()
        self._tasks: TaskGroup = anyio.create_task_group()
        await self._tasks.__aenter__()
        for _ in range(self._count):
            self._hire()
        self._tasks.start_soon(self._watch)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self._wait_for_threads(has_failed=kind is not None)
        except BaseException as cancelled:
            await self._end(type(cancelled), cancelled, cancelled.__traceback__)
            raise
        await self._end(None, None, None)

    def submit(self, batch: Batch) -> None:
        self._in_hand += 1
        self._waiting.put((batch, self._terms))
        if self._submitted is not None:
            self._submitted.set()

    def replace(self, terms: Terms, count: int) -> None:
        for _ in range(self._count, count):
            self._hire()
        for _ in range(count, self._count):
            self._waiting.put(None)  # whoever comes to it leaves
        self._terms, self._count, self.capacity = terms, count, 2 * count
        self._replaced.set()

    async def _end(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.set()
        self._tasks.cancel_scope.cancel()
        await self._tasks.__aexit__(kind, error, trace)

    async def _wait_for_threads(self, *, has_failed: bool) -> None:
        if has_failed:
            self._closing.set()
        for _ in range(self._count):
            self._waiting.put(None)
        with anyio.move_on_after(LEAVE_SECONDS if has_failed else None):
            await self._ended.wait()

    async def _watch(self) -> None:
        """Give up calls that take too long: sleep until the first of them may be due, which is never sooner."""
        while True:
            self._replaced = anyio.Event()
            now = self._terms.now()
            first_due = now + _timeout(self._terms)
            for worker in list(self._workers):
                call = worker.call
                if call is None or call.is_claimed:
                    continue
                due = call.started + _timeout(call.job.terms)
                if now < due:
                    first_due = min(first_due, due)
                elif call.claim():
                    self._give_up(worker, call.job)
            with anyio.move_on_after(first_due - now):
                await self._replaced.wait()
            if self._in_hand == 0:
                self._submitted = anyio.Event()
                await self._submitted.wait()
                self._submitted = None

    def _give_up(self, worker: _Worker, job: Job) -> None:
        """Leave a thread alone with the call it is in, and go on with its batch in another."""
        self._workers.discard(worker)
        self._hanging += 1
        if self._hanging > self._count:
            self._return(job.batch, self._too_many())
            self._end_if_none_left()
            return
        self.restarts += 1
        seconds = _timeout(job.terms)
        told = {"timeout_seconds": seconds, "batch": job.batch.sequence, "hanging": self._hanging}
        _log.warning(
            "a call of the model hangs for longer than %s; another worker takes its place", format_duration(seconds),
            extra={"event": "worker_restarted", "fields": told},
        )  # fmt: skip
        job.learn(TimedOutError(seconds))
        self._hire(job)

    def _too_many(self) -> ModelError:
        timeout = format_duration(_timeout(self._terms))
        return ModelError(
            self._terms.transform.model_name,
            f"{self._hanging} calls hang for longer than {timeout}; with [workers] count = "
            f"{self._count} no more than {self._count} may; raise [workers] timeout if the model only needs longer",
        )

    def _hire(self, job: Job | None = None) -> None:
        worker = _Worker()
        self._workers.add(worker)
        name = f"streambatch-worker-{next(self._numbers)}"
        threading.Thread(target=self._work, args=(worker, job), name=name, daemon=True).start()

    def _work(self, worker: _Worker, job: Job | None) -> None:
        leave = partial(self._left, worker)
        with np.errstate(all="ignore"), contextlib.suppress(_LeftAlone):
            if job is not None:
                self._score(worker, job)
            while not self._closing.is_set() and (submitted := self._waiting.get()) is not None:
                self._take(worker, *submitted)
            self._call_soon(leave)
            return
        self._call_soon(self._came_back)

    def _take(self, worker: _Worker, batch: Batch, terms: Terms) -> None:
        batch.stamps.started = terms.now()
        try:
            job = self._prepared(batch, terms)
        except Exception as error:
            self._hand_over(batch, error)
        else:
            self._score(worker, job)

    def _prepared(self, batch: Batch, terms: Terms) -> Job:
        if not terms.transform.is_ordered:
            return Job(terms, batch)
        with self._turn.of(batch.sequence):
            return Job(terms, batch)

    def _score(self, worker: _Worker, job: Job) -> None:
        """Do what is left of a job; at a hard stop, leave it."""
        trial = job.trial
        while (span := trial.span) is not None:
            if trial.wait_seconds and self._closing.wait(trial.wait_seconds):
                return
            self._call(worker, job, span)
        try:
            outcome = job.outcome()
        except Exception as error:
            self._hand_over(job.batch, error)
        else:
            self._hand_over(job.batch, outcome)

    def _call(self, worker: _Worker, job: Job, span: slice) -> None:
        started = job.terms.now()
        job.trial.started(started)
        call = worker.call = _Call(job, started)
        result = job.tried(span)
        if not call.claim():
            raise _LeftAlone
        worker.call = None
        job.learn(result)

    def _hand_over(self, batch: Batch, result: Outcome | Exception) -> None:
        self._results.append((batch, result))
        if not self._is_drain_scheduled:
            self._is_drain_scheduled = True
            self._call_soon(self._drain)

    def _drain(self) -> None:
        self._is_drain_scheduled = False
        while self._results:
            self._return(*self._results.popleft())

    def _return(self, batch: Batch, result: Outcome | Exception) -> None:
        self._in_hand -= 1
        self._done(batch, result)

    def _left(self, worker: _Worker) -> None:
        self._drain()
        self._workers.discard(worker)
        self._end_if_none_left()

    def _came_back(self) -> None:
        self._hanging -= 1

    def _end_if_none_left(self) -> None:
        if not self._workers:
            self._ended.set()


def _timeout(terms: Terms) -> float:
    assert terms.timeout is not None
    return terms.timeout


class _LeftAlone(BaseException):
    """Ends a thread whose call was given up while it was in the model."""


class _Worker:
    """A thread, and the call of the model that it is in."""

    __slots__ = ("call",)

    def __init__(self) -> None:
        self.call: _Call | None = None


class _Call:
    """A call of the model that runs, until somebody claims it."""

    __slots__ = ("_claim", "job", "started")

    def __init__(self, job: Job, started: float) -> None:
        self.job, self.started = job, started
        self._claim = threading.Lock()

    @property
    def is_claimed(self) -> bool:
        return self._claim.locked()

    def claim(self) -> bool:
        """Return whether the caller is the first to ask."""
        return self._claim.acquire(blocking=False)


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
