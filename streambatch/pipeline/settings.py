"""The description of a pipeline, which stays as it is, and its settings, which can be changed while it runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from streambatch.core.budget import Limits
from streambatch.core.clock import Clock, SystemClock
from streambatch.core.errors import ConfigError, ConfigProblem, StepError
from streambatch.core.events import Observer
from streambatch.core.naming import distinctly_named
from streambatch.core.parts import Model, Sink, Site, Source
from streambatch.core.schema import RecordSchema
from streambatch.core.wrapping import RunningSource, WritingSink, as_sink, as_source
from streambatch.core.wrapping_scoring import as_model, as_step
from streambatch.delivery.dead_letters import DeadLetterOptions
from streambatch.durability.manifest import Provenance
from streambatch.durability.options import Delivery, RunsOptions
from streambatch.microbatch.inbox import QueueLimits
from streambatch.microbatch.window import BatchPolicy
from streambatch.scoring.executors.choice import Workers, check_timeout
from streambatch.storage.folder import StateFolder

LATER = "until the pipeline is restarted"
"""When what can't be changed can be."""
QUEUE_SHARE = 4
"""One part in so many of the memory is the most that the queue may hold, and as much what is in flight."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings that can be changed while a pipeline runs; each means what it means to a Pipeline."""

    model: Any
    """Model, its options, or what a model is made of: see `as_model`. Wrapped if need be."""
    preprocess: Sequence[Any] = ()
    """Steps in the same way: see `as_step`. In a reload, where one has memory, the very steps that the pipeline has."""
    batch: BatchPolicy = field(default_factory=BatchPolicy)
    workers: Workers = field(default_factory=Workers)
    """In a reload, of the same executor."""
    queue: QueueLimits = field(default_factory=QueueLimits)
    delivery: Delivery = field(default_factory=Delivery)
    dead_letter: DeadLetterOptions = field(default_factory=DeadLetterOptions)
    """In a reload, only `stop_at` counts."""
    provenance: Provenance | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "model", as_model(self.model))
        object.__setattr__(self, "preprocess", tuple(map(as_step, self.preprocess)))

    def built(self, site: Callable[[str], Site]) -> Settings:
        """Return the same settings with steps and model built. site: where a part is, by its key in a config.

        Raises what a part raises that can't be built.
        """
        return self.built_around(self.model.build(site("model")), site)

    def built_around(self, model: Model, site: Callable[[str], Site]) -> Settings:
        """Return the same settings with steps built, and with a model that was built of them before."""
        steps = [step.build(site(f"preprocess[{at}]")) for at, step in enumerate(self.preprocess)]
        return replace(self, preprocess=steps, model=model)

    def check_reload(self, running: Settings) -> None:
        """Raise ConfigError or StepError for what a pipeline that runs by other settings can't change into.

        Steps and models of both are built.
        """
        check_timeout(self.workers, self.model)
        # Batches in hand belong to the executor that runs: a reload gives it another context, and never replaces it.
        executor, allowed = self.workers.executor, running.workers.executor
        if executor != allowed:
            raise ConfigError([ConfigProblem("workers.executor", repr(executor), f"{allowed!r}, {LATER}")])
        if self.model.is_async != running.model.is_async:
            kinds = {True: "a model whose score is async", False: "a model whose score is not async"}
            found, expected = kinds[self.model.is_async], kinds[running.model.is_async]
            raise ConfigError([ConfigProblem("model", found, f"{expected}, {LATER}")])
        # States are handed over by position (Transform.go_on_from), so that only the very same steps can take them.
        steps = (*running.preprocess, *self.preprocess)
        if list(running.preprocess) != list(self.preprocess) and (stateful := [s for s in steps if s.is_stateful]):
            raise StepError(stateful[0].name, f"it has memory: [[preprocess]] stays as it is {LATER}")


@dataclass(frozen=True, kw_only=True)
class Description:
    """The parts of a pipeline that stay as they are while it runs; each means what it means to a Pipeline."""

    name: str
    sources: Sequence[Source]
    record: RecordSchema
    sink: Sink
    limits: Limits
    state_dir: Path | StateFolder | None
    runs: RunsOptions
    observer: Observer
    clock: Clock
    folder: Path
    """Relative paths of parts start here."""

    @property
    def state_path(self) -> Path | None:
        """The state folder; None without one."""
        return self.state_dir.path if isinstance(self.state_dir, StateFolder) else self.state_dir

    @property
    def is_finite(self) -> bool:
        """Whether all sources end by themselves."""
        return all(source.is_finite for source in self.sources)

    def site(self, part: str = "") -> Site:
        """Return where a part is built."""
        return Site(pipeline=self.name, part=part, folder=self.folder, state_dir=self.state_path, clock=self.clock)

    def queue_limits(self, settings: Settings) -> QueueLimits:
        """Return how much may wait to be batched, so that it leaves others their part of the memory."""
        return settings.queue.within(self.limits.memory // QUEUE_SHARE)


def describe(
    *,
    sources: Sequence[Source | RunningSource],
    record: RecordSchema,
    sink: Sink | WritingSink,
    name: str = "pipeline",
    limits: Limits | None = None,
    state_dir: Path | StateFolder | None = None,
    runs: RunsOptions | None = None,
    observer: Observer | None = None,
    clock: Clock | None = None,
    folder: Path | None = None,
) -> Description:
    """Return the description: each source with a name of its own, and duck-typed parts wrapped."""
    return Description(
        name=name,
        sources=distinctly_named(map(as_source, sources)),
        record=record,
        sink=as_sink(sink),
        limits=limits or Limits(),
        state_dir=state_dir,
        runs=runs or RunsOptions(),
        observer=observer or Observer(),
        clock=clock or SystemClock(),
        folder=folder or Path(),
    )
