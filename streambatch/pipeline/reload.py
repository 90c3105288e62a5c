"""What of a pipeline can be changed while it runs, put together before anything of it is changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import is_
from typing import Any

from streambatch.core.errors import ConfigError, ConfigProblem, StepError
from streambatch.delivery.dead_letters import DeadLetterOptions
from streambatch.durability.resume import Delivery, Provenance
from streambatch.microbatch.inbox import QueueLimits
from streambatch.microbatch.window import BatchPolicy
from streambatch.scoring.executors.choice import Workers, check_timeout, is_async
from streambatch.scoring.states import has_memory, name_of

LATER = "until the pipeline is started anew"
"""When what can't be changed can be."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings for `Pipeline.reload`; each means what it means to a Pipeline.

    preprocess: where it has a step with memory, the very steps that the pipeline has. workers: of the same executor.
    dead_letter: of which only `stop_at` counts.
    """

    preprocess: Sequence[Any]
    model: Any
    batch: BatchPolicy
    workers: Workers
    queue: QueueLimits
    delivery: Delivery
    dead_letter: DeadLetterOptions
    provenance: Provenance

    def check(self, model: Any, workers: Workers, preprocess: Sequence[Any]) -> None:
        """Raise ConfigError or StepError for what a pipeline with this model, workers and steps can't change into."""
        check_timeout(self.workers, self.model)
        if self.workers.executor != workers.executor:
            problem = ConfigProblem("workers.executor", repr(self.workers.executor), f"{workers.executor!r}, {LATER}")
            raise ConfigError([problem])
        if is_async(self.model) != is_async(model):
            kinds = {True: "a model whose score is async", False: "a model whose score is not async"}
            found, allowed = kinds[is_async(self.model)], kinds[is_async(model)]
            raise ConfigError([ConfigProblem("model", found, f"{allowed}, {LATER}")])
        is_same = len(preprocess) == len(self.preprocess) and all(map(is_, preprocess, self.preprocess))
        if not is_same and (remembering := [*filter(has_memory, (*preprocess, *self.preprocess))]):
            raise StepError(name_of(remembering[0]), f"it has memory: [[preprocess]] stays as it is {LATER}")
