"""Where the transform runs: in the event loop (`inline`), in worker threads (`thread`), or, if async, as tasks."""

from __future__ import annotations

import random as numbers
from typing import Annotated, Literal

from pydantic import Field

from streambatch.core.errors import ConfigError, ConfigProblem
from streambatch.core.options import options
from streambatch.core.parts import Model
from streambatch.core.retry import Random, RetryPolicy
from streambatch.core.units import Duration, format_duration
from streambatch.scoring.batch_scoring import Done, ScoringContext
from streambatch.scoring.executors.executor import Executor
from streambatch.scoring.executors.inline import InlineExecutor
from streambatch.scoring.executors.tasks import TaskExecutor
from streambatch.scoring.executors.threads import ThreadExecutor
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


def make_executor(
    workers: Workers, transform: Transform, done: Done, now: Now, random: Random = numbers.random
) -> Executor:
    """Return the executor that the options ask for and the model allows.

    random: what waits between attempts are drawn with. Raises ConfigError as `check_timeout` does.
    """
    context = context_of(workers, transform, now, random)
    if transform.model.is_async:
        return TaskExecutor(context, done, workers.count)
    if context.timeout is None:
        return InlineExecutor(context, done)
    return ThreadExecutor(context, done, workers.count)


def context_of(workers: Workers, transform: Transform, now: Now, random: Random = numbers.random) -> ScoringContext:
    """Return how batches are scored by the options. Raises ConfigError as `check_timeout` does."""
    check_timeout(workers, transform.model)
    timeout = workers.timeout or (TIMEOUT_SECONDS if transform.model.is_async else None)
    policy = RetryPolicy(attempts=workers.attempts)
    return ScoringContext(transform=transform, now=now, policy=policy, random=random, timeout=timeout)


def check_timeout(workers: Workers, model: Model) -> None:
    """Raise ConfigError for a time limit on calls that nothing could end: those that the event loop itself makes."""
    if workers.executor == "inline" and workers.timeout is not None and not model.is_async:
        found = f'{format_duration(workers.timeout)} with executor = "inline" and a model that is not async'
        raise ConfigError([ConfigProblem("workers.timeout", found, 'none, or executor = "thread"')])
