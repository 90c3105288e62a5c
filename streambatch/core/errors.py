"""Every error streambatch raises, under one root.

A class builds its message from its fields and keeps the fields. A message names where, what was found, what is
allowed and, where there is something to do, what to do.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass


class StreambatchError(Exception):
    """Root of all errors raised by streambatch."""


@dataclass(frozen=True)
class ConfigProblem:
    """One mistake in a config: the key it is at, what was found there, what is allowed, and what was likely meant."""

    key: str
    found: str
    allowed: str
    meant: str = ""
    line: int | None = None
    """The line of the config file, where the file holds the key."""

    def __str__(self) -> str:
        return _problem_text(self.key, self.found, self.allowed, self.meant)


class ConfigError(StreambatchError):
    """The config, or the options a part was built with, can't be used. Holds all problems at once."""

    def __init__(self, problems: Sequence[ConfigProblem], where: str = "") -> None:
        self.problems = tuple(problems)
        self.where = where
        super().__init__("\n".join(_placed(problem, where) for problem in self.problems))


class OptionError(StreambatchError, ValueError):
    """One option of a part is impossible; `config` turns it into a ConfigProblem with the full key."""

    def __init__(self, option: str, found: object, allowed: str, meant: str = "") -> None:
        self.option, self.found, self.allowed, self.meant = option, found, allowed, meant
        super().__init__(_problem_text(option, found, allowed, meant))


class ShapeError(StreambatchError):
    """An array has the wrong shape. Names the part, the shape wanted and the shape given."""

    def __init__(self, part: str, wanted: str, given: tuple[int, ...], hint: str = "") -> None:
        self.part, self.wanted, self.given = part, wanted, given
        super().__init__(f"{part}: expected shape {wanted}, found {given}" + (f"; {hint}" if hint else ""))


class ModelError(StreambatchError):
    """A model can't be loaded, or failed on a whole first batch. Names the model."""

    def __init__(self, model: str, problem: str) -> None:
        self.model = model
        super().__init__(f"model {model}: {problem}")


class RetryableError(StreambatchError):
    """Raised by a model for an error that will pass, such as a backend that is away: the call is tried again."""


class StepError(StreambatchError):
    """A preprocess step can't be loaded or used. Names the step."""

    def __init__(self, step: str, problem: str) -> None:
        self.step = step
        super().__init__(f"preprocess step {step}: {problem}")


class SourceError(StreambatchError):
    """A source can't go on reading. Names the source and, where there is one, the path or address."""

    def __init__(self, source: str, problem: str) -> None:
        self.source = source
        super().__init__(f"source {source}: {problem}")


class SinkError(StreambatchError):
    """A sink can't be opened or written. Names the sink and its path or address."""

    def __init__(self, sink: str, problem: str) -> None:
        self.sink = sink
        super().__init__(f"sink {sink}: {problem}")


class ChangedOutputError(SinkError):
    """An output is not, or no longer, what the state says of it; for the command line, exit code 2."""


class SinkOutage(SinkError):
    """A sink can't be opened or written for now: the same write may be taken later.

    retry_after: seconds that the other side asks to be left alone for, if it says so.
    """

    def __init__(self, sink: str, problem: str, retry_after: float | None = None) -> None:
        self.retry_after = retry_after
        super().__init__(sink, problem)


class SinkRefused(SinkError):
    """A sink will never take this payload, for what it holds; others it may.

    status: what the other side answered, as a number. reason: what it said, at most its beginning.
    """

    def __init__(self, sink: str, problem: str, *, status: int, reason: str) -> None:
        self.status, self.reason = status, reason
        super().__init__(sink, problem)


class RunningError(StreambatchError):
    """A pipeline was to be run while it runs."""

    def __init__(self, pipeline: str, run_id: str) -> None:
        self.pipeline, self.run_id = pipeline, run_id
        super().__init__(
            f"pipeline {pipeline} already runs, as run {run_id}; wait until that has ended, or put a second pipeline "
            "together from the same options"
        )


class TooManyDeadError(StreambatchError):
    """More records died than `[dead_letter] stop_at` allows."""

    def __init__(self, dead: int, settled: int, stop_at: float) -> None:
        self.dead, self.settled, self.stop_at = dead, settled, stop_at
        super().__init__(
            f"[dead_letter] stop_at: {dead} of {settled} records died; allowed: {stop_at:.0%}; "
            "the dead letters say why; raise stop_at to 1 to go on regardless"
        )


class StateError(StreambatchError):
    """The content of the state folder can't be used. Names the file."""

    def __init__(self, path: object, problem: str) -> None:
        self.path, self.problem = path, problem
        super().__init__(f"state {path}: {problem}")


class StateOutage(StateError):
    """State can't be read or stored for now, as on a full disk; nothing was changed, and trying again may work."""

    retry_after: float | None = None
    """As of a `SinkOutage`: nothing asks to be left alone."""


class DamagedStateError(StateError):
    """Stored state is not what was stored. `aside` is where the file was put, None if it was left where it is."""

    def __init__(self, path: object, problem: str, aside: object | None = None) -> None:
        self.aside = aside
        super().__init__(path, problem)


class ChangedReadingError(StateError):
    """A source would cut its records otherwise than its positions were counted; for the command line, exit code 2."""


class HeldError(StreambatchError):
    """A state folder or an output is in use by another process, or already there."""


def _placed(problem: ConfigProblem, where: str) -> str:
    if not where:
        return str(problem)
    return f"{where}:{problem.line}: {problem}" if problem.line is not None else f"{where}: {problem}"


def _problem_text(key: str, found: object, allowed: str, meant: str) -> str:
    """Return a problem as one line: the likely fix before the list of what is allowed, which may be long."""
    return f"{key}: found {found}; {f'did you mean {meant}? ' if meant else ''}allowed: {allowed}"


def first_cause(error: BaseException, besides: type[BaseException] | tuple[()] = ()) -> BaseException:
    """Return the first error inside nested groups; one that is a `besides` only if there is no other."""
    causes = list(_causes(error))
    return next((cause for cause in causes if not isinstance(cause, besides)), causes[0])


def _causes(error: BaseException) -> Iterator[BaseException]:
    if not isinstance(error, BaseExceptionGroup):
        yield error
        return
    for one in error.exceptions:
        yield from _causes(one)
