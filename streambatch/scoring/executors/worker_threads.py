"""The worker threads of a `ThreadExecutor`: what runs in them, and which there are.

A call of the model is claimed once: by the thread when it comes back from it, or by the event loop when the time limit
is up. The first to claim it goes on with the batch, and the other leaves it alone.

A worker is in one of these states:

| state     | it                                          | goes on to                                        |
| --------- | ------------------------------------------- | ------------------------------------------------- |
| waiting   | waits for a batch                           | scoring; left, when it gets None or all ends      |
| scoring   | prepares a batch, or waits before a retry   | calling; waiting, once the batch is handed over   |
| calling   | is in the model                             | scoring, when it claims its call; hanging if not  |
| hanging   | is still in the model, given up by the loop | came back: it touches nothing any more, and ends  |
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from queue import SimpleQueue

import anyio
import numpy as np

from streambatch.core.batches import Batch
from streambatch.core.outcomes import Outcome
from streambatch.scoring.batch_scoring import BatchScoring, Done, ScoringContext


class Worker:
    """A thread, as the event loop sees it."""

    __slots__ = ("call",)

    def __init__(self) -> None:
        self.call: Call | None = None
        """The call of the model that it is in."""


class Call:
    """A call of the model that runs, until it is claimed."""

    __slots__ = ("_claim", "scoring", "started")

    def __init__(self, scoring: BatchScoring, started: float) -> None:
        self.scoring, self.started = scoring, started
        self._claim = threading.Lock()

    @property
    def is_claimed(self) -> bool:
        return self._claim.locked()

    def claim(self) -> bool:
        """Return whether the caller is the first to ask."""
        # One atomic step: of the thread and the event loop, exactly one gets the lock, which is never released.
        return self._claim.acquire(blocking=False)


class ThreadResults:
    """Hands results from threads to the event loop, in bulk: a busy loop is woken once for several."""

    def __init__(self, done: Done) -> None:
        self._done = done
        self._results: deque[tuple[Batch, Outcome | Exception]] = deque()
        self._is_delivery_scheduled = False
        self.call_soon = _loop_caller()

    def put(self, batch: Batch, result: Outcome | Exception) -> None:
        """Hand a result over; any thread may call it."""
        self._results.append((batch, result))
        if not self._is_delivery_scheduled:
            self._is_delivery_scheduled = True
            self.call_soon(self.deliver)

    def deliver(self) -> None:
        """Give all results to `done`; only the event loop may call it."""
        # Reset first: a thread that adds a result after the last look then schedules another delivery.
        self._is_delivery_scheduled = False
        while self._results:
            self._done(*self._results.popleft())


class WorkerThreads:
    """The threads that work for one executor. All but `submit` belongs to the event loop."""

    def __init__(self, done: Done) -> None:
        self.closing = threading.Event()
        """Set at a hard stop: threads leave what they do."""
        self.working: set[Worker] = set()
        self.hanging = 0
        """Threads that were given up and did not come back."""
        self.ended = anyio.Event()
        """Set when the last working thread has left."""
        self._results = ThreadResults(done)
        self._waiting: SimpleQueue[tuple[Batch, ScoringContext] | None] = SimpleQueue()
        self._turn = _Turn()
        self._numbers = itertools.count()

    def hire(self, scoring: BatchScoring | None = None) -> None:
        """Start a thread; it first does what is left of `scoring`."""
        worker = Worker()
        self.working.add(worker)
        name = f"streambatch-worker-{next(self._numbers)}"
        # A daemon: a thread that hangs in the model must not keep the process from ending.
        threading.Thread(target=self._work, args=(worker, scoring), name=name, daemon=True).start()

    def dismiss(self) -> None:
        """Let one thread leave, after the batches that wait already."""
        self._waiting.put(None)

    def submit(self, batch: Batch, context: ScoringContext) -> None:
        """Let a thread score a batch. Threads take batches in order."""
        self._waiting.put((batch, context))

    def give_up(self, worker: Worker) -> None:
        """Leave a thread alone with a call that the event loop has claimed."""
        self.working.discard(worker)
        self.hanging += 1

    def end_if_none_works(self) -> None:
        if not self.working:
            self.ended.set()

    def _work(self, worker: Worker, scoring: BatchScoring | None) -> None:
        leave = partial(self._left, worker)
        # The setting of numpy holds for one thread.
        with np.errstate(all="ignore"), contextlib.suppress(_GivenUp):
            if scoring is not None:
                self._score(worker, scoring)
            while not self.closing.is_set() and (submitted := self._waiting.get()) is not None:
                self._take(worker, *submitted)
            self._results.call_soon(leave)
            return
        self._results.call_soon(self._came_back)

    def _take(self, worker: Worker, batch: Batch, context: ScoringContext) -> None:
        batch.stamps.started = context.now()
        try:
            scoring = self._prepared(batch, context)
        except Exception as error:
            self._results.put(batch, error)
        else:
            self._score(worker, scoring)

    def _prepared(self, batch: Batch, context: ScoringContext) -> BatchScoring:
        if not context.transform.is_ordered:
            return BatchScoring(context, batch)
        # No deadlock: threads take batches in order, so that the batch whose turn it is has a thread already.
        with self._turn.of(batch.sequence):
            return BatchScoring(context, batch)

    def _score(self, worker: Worker, scoring: BatchScoring) -> None:
        """Do what is left of a batch; at a hard stop, leave it."""
        attempts = scoring.attempts
        while (span := attempts.span) is not None:
            if attempts.wait_seconds and self.closing.wait(attempts.wait_seconds):
                return
            self._call(worker, scoring, span)
        try:
            outcome = scoring.outcome()
        except Exception as error:
            self._results.put(scoring.batch, error)
        else:
            self._results.put(scoring.batch, outcome)

    def _call(self, worker: Worker, scoring: BatchScoring, span: slice) -> None:
        started = scoring.context.now()
        scoring.attempts.started(started)
        # From here on the event loop may claim the call, and with it the batch.
        call = worker.call = Call(scoring, started)
        result = scoring.result_of(span)
        if not call.claim():
            raise _GivenUp
        worker.call = None
        scoring.record(result)

    def _left(self, worker: Worker) -> None:
        self._results.deliver()  # what the thread handed over last comes before the end
        self.working.discard(worker)
        self.end_if_none_works()

    def _came_back(self) -> None:
        self.hanging -= 1


class _GivenUp(BaseException):
    """Ends a thread whose call was given up while it was in the model."""


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
    """Ignore a loop that is gone: after a hard stop, a thread that comes back late finds no loop to tell."""

    def call(function: Callable[[], None]) -> None:
        with contextlib.suppress(closed):
            call_soon(function)

    return call
