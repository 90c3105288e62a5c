"""What of a pipeline can be changed while it runs, put together before anything of it is changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import eq
from typing import Any

from streambatch.core.errors import ConfigError, ConfigProblem, StepError
from streambatch.core.parts import Model, Site, StatefulStep, Step
from streambatch.core.wrapping_scoring import as_model, as_step
from streambatch.delivery.dead_letters import DeadLetterOptions
from streambatch.durability.resume import Delivery, Provenance
from streambatch.microbatch.inbox import QueueLimits
from streambatch.microbatch.window import BatchPolicy
from streambatch.scoring.executors.choice import Workers, check_timeout

LATER = "until the pipeline is started anew"
"""When what can't be changed can be."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings for `Pipeline.reload`; each means what it means to a Pipeline.

    Steps and model are built, where they are options, when the settings are made. preprocess: where it has a step with
    memory, the very steps that the pipeline has. workers: of the same executor. dead_letter: of which only `stop_at`
    counts.
    """

    preprocess: Sequence[Any]
    model: Any
    batch: BatchPolicy
    workers: Workers
    queue: QueueLimits
    delivery: Delivery
    dead_letter: DeadLetterOptions
    provenance: Provenance

    def __post_init__(self) -> None:
        steps = tuple(as_step(step).build(Site()) for step in self.preprocess)
        object.__setattr__(self, "preprocess", steps)
        object.__setattr__(self, "model", as_model(self.model).build(Site()))

    def check(self, model: Model, workers: Workers, preprocess: Sequence[Step | StatefulStep]) -> None:
        """Raise ConfigError or StepError for what a pipeline with this model, workers and steps can't change into."""
        check_timeout(self.workers, self.model)
        if self.workers.executor != workers.executor:
            problem = ConfigProblem("workers.executor", repr(self.workers.executor), f"{workers.executor!r}, {LATER}")
            raise ConfigError([problem])
        if self.model.is_async != model.is_async:
            kinds = {True: "a model whose score is async", False: "a model whose score is not async"}
            found, allowed = kinds[self.model.is_async], kinds[model.is_async]
            raise ConfigError([ConfigProblem("model", found, f"{allowed}, {LATER}")])
        is_same = len(preprocess) == len(self.preprocess) and all(map(eq, preprocess, self.preprocess))
        if not is_same and (remembering := [step for step in (*preprocess, *self.preprocess) if step.is_stateful]):
            raise StepError(remembering[0].name, f"it has memory: [[preprocess]] stays as it is {LATER}")
