"""Request batching: many callers, one call of a function that takes a list of rows.

Rows wait in line. A batch is a task that keeps its window open, takes the first in line, calls the function and
answers. Invariants: while rows are in line there is such a task; it lives only as long as somebody waits for it, and
the last one to go away sees it off. So nothing runs unwatched, and no caller's cancellation reaches another caller.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Sequence
from contextvars import Context, copy_context
from functools import partial
from inspect import iscoroutinefunction
from itertools import islice
from typing import Annotated, Any, Generic, Protocol, Self, TypeVar, overload

import anyio
from pydantic import Field

from streambatch.core.errors import OptionError, ShapeError, StreambatchError
from streambatch.core.options import options
from streambatch.core.units import Duration
from streambatch.embed.eventloop import EventLoop, Task, Turn, event_loop, loop_token

Row = TypeVar("Row")
Score = TypeVar("Score")
Owner = TypeVar("Owner")
OwnerIn = TypeVar("OwnerIn", contravariant=True)


class FullError(StreambatchError):
    """As many callers wait as may: this one was refused and nothing was done for it. A web service answers 503."""

    def __init__(self, function: str, max_pending: int) -> None:
        self.function, self.max_pending = function, max_pending
        super().__init__(f"{function}: found {max_pending} callers waiting; allowed: max_pending={max_pending}")


class InterruptedCallError(StreambatchError):
    """A call was cancelled by something else than its callers; this tells them."""

    def __init__(self, function: str) -> None:
        self.function = function
        super().__init__(f"{function}: the call was cancelled, and not by its callers")


@options
class RequestPolicy:
    """When a batch of requests closes, and how many may wait."""

    max_records: Annotated[int, Field(ge=1)] = 64
    """Rows in one call, at most."""
    max_wait: Annotated[Duration, Field(ge=0)] = 0.005
    """Time from the arrival of a batch's first row to its call, at most, while a call may start."""
    max_pending: Annotated[int, Field(ge=1)] = 4096
    """Callers that may wait at once, in line or for their call; a further one is refused."""
    concurrency: Annotated[int, Field(ge=1)] = 1
    """Calls that may run at once."""
    isolate_errors: bool = True
    """Halve a batch whose call raised until the guilty rows stand alone; otherwise the error is every caller's."""

    def __post_init__(self) -> None:
        if self.max_pending < self.max_records:
            raise OptionError("max_pending", self.max_pending, f"at least max_records, which is {self.max_records}")


class Batched(Generic[Row, Score]):
    """A function of many rows, to be called with one."""

    def __init__(
        self,
        function: Callable[..., Awaitable[Collection[Score | Exception]]],
        policy: RequestPolicy,
        lines: dict[tuple[object, int], _Line],
        owner: int = 0,
    ) -> None:
        """Internal: use `batched`."""
        self._function, self._policy, self._lines, self._owner = function, policy, lines, owner
        self.__name__, self.__doc__ = name_of(function), function.__doc__

    async def __call__(self, row: Row) -> Score:
        """Return the score of `row`, which is scored together with others.

        Raises what the function returned or raised for it; FullError at once when too many wait; ShapeError when the
        function returned a wrong number of scores. A cancelled caller leaves at once; only the last one that waits
        for a call cancels it, and waits for its end.
        """
        key = (loop_token(), self._owner)
        line = self._lines.get(key)
        if line is None:
            # Removed once nothing runs in it: a line keeps its event loop and its owner alive.
            close = partial(self._lines.pop, key)
            line = self._lines[key] = _Line(self._function, self.__name__, self._policy, event_loop(key[0]), close)
        call = line.join(row)
        try:
            await call.turn
        except BaseException as error:
            batch = line.leave(call)
            # A coroutine that is being closed may not wait.
            if batch is not None and not isinstance(error, GeneratorExit):
                await batch.task.ended()
            raise
        return call.result()  # type: ignore[no-any-return]  # as typed by `batched`

    def __get__(self, owner: object, kind: type | None = None) -> Self:
        """Return it as the method of an object, whose calls are batched apart from every other object's."""
        if owner is None:
            return self
        # An owner can't go away, and its id to another, while a caller waits: the caller holds it.
        return type(self)(partial(self._function, owner), self._policy, self._lines, id(owner))


class BatchedMethod(Protocol[OwnerIn, Row, Score]):
    """The type of a batched method in a class body; on an object it is a `Batched`."""

    @overload
    def __get__(self, owner: None, kind: type, /) -> Self: ...

    @overload
    def __get__(self, owner: OwnerIn, kind: type | None = None, /) -> Batched[Row, Score]: ...


class Decorator(Protocol):
    """What `batched` returns."""

    @overload
    def __call__(
        self, function: Callable[[list[Row]], Awaitable[Collection[Score | Exception]]], /
    ) -> Batched[Row, Score]: ...

    @overload
    def __call__(
        self, function: Callable[[Owner, list[Row]], Awaitable[Collection[Score | Exception]]], /
    ) -> BatchedMethod[Owner, Row, Score]: ...


def batched(
    *,
    max_records: int = 64,
    max_wait: float = 0.005,
    max_pending: int = 4096,
    concurrency: int = 1,
    isolate_errors: bool = True,
) -> Decorator:
    """Make an async function of a list of rows one that is awaited with a single row, by many callers at once.

    The function, or method, returns one score per row, in order; an exception in a row's place is raised at that row's
    caller. When it raises, the batch is halved until the guilty rows stand alone: it must not mind being called again
    with the same rows. An OSError, which a timeout is too, is no row's fault: all of the batch get it at once.

    max_records, max_wait, max_pending, concurrency, isolate_errors: see RequestPolicy, whose ConfigError they raise.
    The function runs in a task of its own, in the context of the caller that came first; on any number of asyncio and
    trio event loops, each with its own line. Raises TypeError when it isn't an `async def`.
    """
    policy = RequestPolicy(
        max_records=max_records,
        max_wait=max_wait,
        max_pending=max_pending,
        concurrency=concurrency,
        isolate_errors=isolate_errors,
    )

    def decorate(function: Any) -> Any:
        if not iscoroutinefunction(function) and not iscoroutinefunction(function.__call__):
            raise TypeError(f"batched: {name_of(function)} is no `async def`; blocking work belongs in a thread")
        return Batched(function, policy, {})

    return decorate


def name_of(function: object) -> str:
    """Return what messages call a function."""
    while isinstance(function, partial):
        function = function.func
    return getattr(function, "__qualname__", type(function).__qualname__)


class _Failure:
    """An error for one or more callers, with its traceback as it was before any of them raised it."""

    __slots__ = ("error", "traceback")

    def __init__(self, error: BaseException) -> None:
        self.error, self.traceback = error, error.__traceback__


class _PendingCall:
    """One caller with its row, in line, then in a batch, then answered."""

    __slots__ = ("arrived_at", "batch", "context", "outcome", "row", "turn")

    def __init__(self, row: object, arrived_at: float, context: Context, turn: Turn) -> None:
        self.row, self.arrived_at, self.context, self.turn = row, arrived_at, context, turn
        self.batch: _RequestBatch | None = None
        self.outcome: Any = None

    def result(self) -> Any:
        """Return the score or raise the error, which may happen once."""
        outcome, self.outcome = self.outcome, None
        if not isinstance(outcome, _Failure):
            return outcome
        try:
            # Each caller raises the error with its first traceback, or it would gather the frames of all of them.
            raise outcome.error.with_traceback(outcome.traceback)
        finally:
            del outcome  # or the error would hold itself, by way of this frame


class _RequestBatch:
    """A task that fills a batch from the line, then answers `calls`, those of its callers that still wait."""

    __slots__ = ("calls", "full", "is_abandoned", "task")

    def __init__(self) -> None:
        # Dicts as ordered sets, here and for `waiting`: a caller that is cancelled leaves from the middle.
        self.calls: dict[_PendingCall, None] = {}
        self.full: anyio.Event | None = None
        self.is_abandoned = False
        self.task: Task


class _Line:
    """The callers of one function on one event loop.

    While `waiting` holds calls, some batch fills or as many run as may. `close` is called when none is left.
    """

    def __init__(
        self,
        function: Callable[[list[Any]], Awaitable[Collection[Any]]],
        name: str,
        policy: RequestPolicy,
        loop: EventLoop,
        close: Callable[[], object],
    ) -> None:
        self.function, self.name, self.policy, self.loop, self.close = function, name, policy, loop, close
        self.pending = self.running = 0
        self.waiting: dict[_PendingCall, None] = {}
        self.filling: _RequestBatch | None = None

    def join(self, row: object) -> _PendingCall:
        """Put a row in line. Raises FullError."""
        policy, loop, waiting = self.policy, self.loop, self.waiting
        if self.pending >= policy.max_pending:
            raise FullError(self.name, policy.max_pending)
        call = _PendingCall(row, loop.now(), copy_context(), loop.turn())
        self.pending += 1
        waiting[call] = None
        if self.filling is None:
            self._open()
        # Without its event, the batch did not look at the line yet, and will find it full.
        elif len(waiting) == policy.max_records and self.filling.full is not None:
            self.filling.full.set()
        return call

    def leave(self, call: _PendingCall) -> _RequestBatch | None:
        """Take a caller out. Returns the batch that is cancelled for it, if the caller was its last."""
        batch = call.batch
        if batch is None:
            del self.waiting[call]
            self.pending -= 1
            if self.waiting or self.filling is None:
                return None
            # The batch that fills for this line has no more callers; the next one to come gets a new batch.
            batch, self.filling = self.filling, None
        elif call not in batch.calls:
            return None  # it was answered at the same moment
        else:
            del batch.calls[call]
            self.pending -= 1
            if batch.calls:
                return None
        batch.is_abandoned = True
        batch.task.cancel()
        return batch

    def _open(self) -> None:
        """Begin to fill a batch, if there are rows for it and it may run."""
        if self.waiting and self.filling is None and self.running < self.policy.concurrency:
            self.filling = batch = _RequestBatch()
            self.running += 1
            context = next(iter(self.waiting)).context
            batch.task = self.loop.spawn(partial(self._run, batch), context, partial(self._ended, batch))

    def _ended(self, batch: _RequestBatch) -> None:
        self.running -= 1
        # It was cancelled before it took any rows. Those that came since need another batch.
        if self.filling is batch:
            self.filling = None
        self._open()
        if not self.running:
            self.close()

    async def _run(self, batch: _RequestBatch) -> None:
        if not batch.is_abandoned:
            await self._fill(batch)
        try:
            await self._answer(batch)
        except BaseException as error:
            self._fail(batch, list(batch.calls), error)
            # Any other error has reached its callers; the event loop expects nothing but the cancellation of a task.
            if isinstance(error, anyio.get_cancelled_exc_class()):
                raise

    async def _fill(self, batch: _RequestBatch) -> None:
        """Wait until the batch is full or its first row has waited long enough, and take the first in line."""
        waiting, policy = self.waiting, self.policy
        deadline = next(iter(waiting)).arrived_at + policy.max_wait
        if len(waiting) < policy.max_records and self.loop.now() < deadline:
            batch.full = anyio.Event()
            with anyio.CancelScope(deadline=deadline):
                await batch.full.wait()
        if batch.is_abandoned:
            return
        for call in list(islice(waiting, policy.max_records)):
            del waiting[call]
            call.batch = batch
            batch.calls[call] = None
        self.filling = None
        self._open()

    async def _answer(self, batch: _RequestBatch) -> None:
        """Call the function for all of the batch and, after an error, for its halves, while callers wait."""
        todo = [list(batch.calls)]
        while todo:
            calls = [call for call in todo.pop() if call in batch.calls]
            if not calls:
                continue
            try:
                results = await self.function([call.row for call in calls])
            except Exception as error:
                # An OSError, which a timeout is too, is no row's fault: halves would only make more calls that fail.
                if len(calls) == 1 or not self.policy.isolate_errors or isinstance(error, OSError):
                    self._fail(batch, calls, error)
                else:
                    middle = len(calls) // 2
                    # The last of the list is tried next: rows are called in order.
                    todo += [calls[middle:], calls[:middle]]
            else:
                for call, result in zip(calls, self._checked(results, len(calls)), strict=True):
                    self._settle(batch, call, self._failure(result) if isinstance(result, BaseException) else result)

    def _checked(self, results: Any, rows: int) -> list[Any]:
        """Return the scores as a list. Raises ShapeError or TypeError unless there is one per row, in an order."""
        shape = getattr(results, "shape", None)
        if shape is None and (not isinstance(results, Sequence) or isinstance(results, str | bytes)):
            raise TypeError(f"{self.name}: expected a list of {rows} scores, found {type(results).__name__}")
        # An array without an axis has no length and can't be iterated.
        scores = [] if shape == () else list(results)
        if len(scores) != rows:
            found = (len(scores),) if shape is None else tuple(shape)
            raise ShapeError(self.name, f"({rows},)", found, "return one score, or exception, per row")
        return scores

    def _fail(self, batch: _RequestBatch, calls: Sequence[_PendingCall], error: BaseException) -> None:
        failure = self._failure(error)
        for call in calls:
            self._settle(batch, call, failure)

    def _failure(self, error: BaseException) -> _Failure:
        """Return an error for callers, to whom a cancellation that is not theirs must not look like one."""
        if isinstance(error, anyio.get_cancelled_exc_class()):
            error = InterruptedCallError(self.name)
        return _Failure(error)

    def _settle(self, batch: _RequestBatch, call: _PendingCall, outcome: object) -> None:
        if call in batch.calls:
            del batch.calls[call]
            self.pending -= 1
            call.outcome = outcome
            self.loop.end_turn(call.turn)
