"""Where the transform runs: in the event loop (`inline`), in worker threads (`thread`), or, for a model whose `score`
is async, as tasks on the loop.

An executor holds at most `capacity` batches, running or waiting for a worker; whoever submits sees to that. Every
batch submitted comes back once, through `done`, on the event loop, with its outcome or with the error that ends the
run; batches come back in any order. Only a hard stop leaves batches behind. What numpy would warn of while a batch is
scored is not worth a warning: numbers that are not finite become rejects.
"""

from __future__ import annotations

import asyncio
import random as numbers
from abc import ABC, abstractmethod
from types import TracebackType
from typing import Annotated, Literal, Protocol, Self

import anyio
import numpy as np
from anyio.abc import TaskGroup
from pydantic import Field

from streambatch.core.batches import Batch
from streambatch.core.errors import ConfigError, ConfigProblem, ModelError
from streambatch.core.options import options
from streambatch.core.parts import Model
from streambatch.core.retry import Random, RetryPolicy, TimedOutError
from streambatch.core.types import FloatArray
from streambatch.core.units import Duration, format_duration
from streambatch.scoring.executors.threads import ThreadExecutor
from streambatch.scoring.jobs import Done, Job, Terms
from streambatch.scoring.transform import Now, Transform

TIMEOUT_SECONDS = 30.0
"""How long a call of the model may take where nothing else is said."""


@options
class Workers:
    """Where batches are scored, how many at once, and what a call of the model may take."""

    executor: Literal["inline", "thread"] = "thread"
    """`inline`: in the event loop, least overhead. `thread`: beside it, so that reading and writing go on meanwhile."""
    count: Annotated[int, Field(ge=1, le=256)] = 1
    """Batches scored at once; with `inline`, of an async model only."""
    timeout: Annotated[Duration, Field(gt=0)] | None = None
    """Time for one call of the model: 30s by default. With `inline` there is none, but for an async model."""
    attempts: Annotated[int, Field(ge=1)] = 3
    """Times a call is tried in all when it times out, or raises an error that the model marks as passing."""

    def __post_init__(self) -> None:
        if self.timeout is None and self.executor == "thread":
            object.__setattr__(self, "timeout", TIMEOUT_SECONDS)


class Executor(Protocol):
    """Runs the transform."""

    capacity: int
    restarts: int
    """Workers that were replaced because a call of the model hung."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def submit(self, batch: Batch) -> None:
        """Take a batch; `done` is told of it sooner or later."""
        ...

    def replace(self, terms: Terms, count: int) -> None:
        """Score what is submitted from now on on these terms, by so many workers; the rest ends on those it began with.

        The model is as sync, or async, as the one before.
        """
        ...


def make_executor(
    workers: Workers, transform: Transform, done: Done, now: Now, random: Random = numbers.random
) -> Executor:
    """Return the executor that the options ask for and the model allows.

    random: what waits between attempts are drawn with. Raises ConfigError as `check_timeout` does.
    """
    terms = terms_of(workers, transform, now, random)
    if transform.model.is_async:
        return TaskExecutor(terms, done, workers.count)
    if terms.timeout is None:
        return InlineExecutor(terms, done)
    return ThreadExecutor(terms, done, workers.count)


def terms_of(workers: Workers, transform: Transform, now: Now, random: Random = numbers.random) -> Terms:
    """Return how batches are scored by the options. Raises ConfigError as `check_timeout` does."""
    check_timeout(workers, transform.model)
    timeout = workers.timeout or (TIMEOUT_SECONDS if transform.model.is_async else None)
    policy = RetryPolicy(attempts=workers.attempts)
    return Terms(transform=transform, now=now, policy=policy, random=random, timeout=timeout)


def check_timeout(workers: Workers, model: Model) -> None:
    """Raise ConfigError for a time limit on calls that nothing could end: those that the event loop itself makes."""
    if workers.executor == "inline" and workers.timeout is not None and not model.is_async:
        found = f'{format_duration(workers.timeout)} with executor = "inline" and a model that is not async'
        raise ConfigError([ConfigProblem("workers.timeout", found, 'none, or executor = "thread"')])


class _LoopExecutor(ABC):
    """Calls the model on the event loop; while a batch waits to be tried again, a task holds it."""

    restarts = 0

    def __init__(self, terms: Terms, done: Done, capacity: int) -> None:
        self.capacity = capacity
        self._terms, self._done = terms, done
        self._quiet = np.errstate(all="ignore")

    async def __aenter__(self) -> Self:
        self._quiet.__enter__()
        self._tasks: TaskGroup = anyio.create_task_group()
        await self._tasks.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self._tasks.__aexit__(kind, error, trace)
        finally:
            self._quiet.__exit__(kind, error, trace)

    def replace(self, terms: Terms, count: int) -> None:
        self._terms = terms

    @abstractmethod
    async def _call(self, job: Job, span: slice) -> None:
        """Call the model once."""

    async def _go_on(self, job: Job) -> None:
        """Do what is left of a job."""
        try:
            while (span := job.trial.span) is not None:
                if job.trial.wait_seconds:
                    await anyio.sleep(job.trial.wait_seconds)
                await self._call(job, span)
            outcome = job.outcome()
        except Exception as error:
            self._done(job.batch, error)
        else:
            self._done(job.batch, outcome)


class InlineExecutor(_LoopExecutor):
    """Runs a batch in `submit` itself, but for what has to wait."""

    def __init__(self, terms: Terms, done: Done) -> None:
        super().__init__(terms, done, 1)

    def submit(self, batch: Batch) -> None:
        batch.stamps.started = self._terms.now()
        try:
            job = Job(self._terms, batch)
            while (span := job.trial.span) is not None:
                if job.trial.wait_seconds:
                    self._tasks.start_soon(self._go_on, job)
                    return
                job.call(span)
            outcome = job.outcome()
        except Exception as error:
            self._done(batch, error)
        else:
            self._done(batch, outcome)

    async def _call(self, job: Job, span: slice) -> None:
        job.call(span)


class TaskExecutor(_LoopExecutor):
    """Runs each batch of an async model as a task; decoding and encoding happen on the loop."""

    def submit(self, batch: Batch) -> None:
        batch.stamps.started = self._terms.now()
        try:
            job = Job(self._terms, batch)
        except Exception as error:
            self._done(batch, error)
            return
        self._tasks.start_soon(self._go_on, job)

    def replace(self, terms: Terms, count: int) -> None:
        self._terms, self.capacity = terms, count

    async def _call(self, job: Job, span: slice) -> None:
        timeout = job.terms.timeout or TIMEOUT_SECONDS
        job.trial.started(job.terms.now())
        result: FloatArray | Exception = TimedOutError(timeout)
        with anyio.move_on_after(timeout):
            result = await self._tried(job, span)
        job.learn(result)

    async def _tried(self, job: Job, span: slice) -> FloatArray | Exception:
        transform = job.terms.transform
        try:
            return await transform.call_async(job.prepared, span)
        except Exception as error:
            return error
        except anyio.get_cancelled_exc_class():
            await anyio.lowlevel.checkpoint_if_cancelled()
            if _is_cancelled_from_outside():
                raise
            return ModelError(transform.model_name, "cancelled itself")


def _is_cancelled_from_outside() -> bool:
    """Tell whether somebody cancelled the running task by asyncio's own means, of which no cancel scope knows."""
    if anyio.get_cancelled_exc_class() is not asyncio.CancelledError:
        return True
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0
