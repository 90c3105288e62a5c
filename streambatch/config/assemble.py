"""From a config to a pipeline that is ready to run: parts found, steps built, model loaded, shapes tried on zeros.

Only reads: nothing is opened for writing and no state is touched before the pipeline runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from streambatch.config import config as configs
from streambatch.config.config import Config
from streambatch.config.plugins import find_part
from streambatch.config.sections import ConfiguredPart
from streambatch.core.errors import (
    ConfigError,
    ConfigProblem,
    ModelError,
    OptionError,
    RetryableError,
    ShapeError,
    StepError,
    StreambatchError,
)
from streambatch.core.events import Observer
from streambatch.core.types import BoolArray, FloatArray
from streambatch.durability.resume import Provenance
from streambatch.observe.drift import Drift
from streambatch.pipeline.pipeline import Pipeline
from streambatch.pipeline.reload import Settings
from streambatch.scoring.check import checked_scores
from streambatch.scoring.executors.choice import check_timeout, is_async
from streambatch.scoring.states import has_memory
from streambatch.storage.folder import StateFolder

TRIED_ROWS = 2
"""Rows of zeros in a dry run: with one, a lost batch axis would go unseen."""


class Assembly:
    """What a config was made into: steps, model, and from them the pipeline."""

    def __init__(self, config: Config, running: Assembly | None = None) -> None:
        """Build the steps and load the model.

        running: what a pipeline runs by, that is to go on by this: its steps stay where they have memory and are asked
        for as they were, and its model where this is the same one. What those could do, these must.

        Raises ConfigError, StepError or ModelError for a part that can't be made, ShapeError when steps and model
        don't fit the records.
        """
        self.config = config
        self.steps = tuple(_made(f"preprocess[{at}]", part, config) for at, part in enumerate(config.preprocess))
        self.model = _made("model", config.model, config)
        if running is not None:
            self._take_over(running)
        check_timeout(config.workers, self.model)
        self.drift: Drift | None = running.drift if running is not None else None
        """What samples inputs and scores of the pipeline, if anything does."""
        self.scores_shape: tuple[int, ...] | None = None
        """The shape of one record's scores; None if it could not be tried."""
        self.untried: Exception | None = self._dry_run(running)
        """What the parts raised on zeros, other than for their shape: records may still fare better."""
        if running is not None:
            self._compare(running)

    def pipeline(
        self, observer: Observer | None = None, folder: StateFolder | None = None, drift: Drift | None = None
    ) -> Pipeline:
        """Return the pipeline. folder: the state folder, if it is held already. drift: what is to sample it."""
        config, self.drift = self.config, drift
        return Pipeline(
            name=config.name,
            sources=[part.options for part in config.sources],
            record=config.record,
            limits=config.limits,
            sink=config.sink.options,
            state_dir=folder or config.state_dir,
            runs=config.runs,
            observer=observer,
            **vars(self.settings()),
        )

    @property
    def model_name(self) -> str:
        """What the model is called in messages."""
        return str(getattr(self.model, "name", self.config.model.type))

    @property
    def model_digest(self) -> str | None:
        """Which model it is; None for one that doesn't say."""
        return getattr(self.model, "digest", None)

    def settings(self) -> Settings:
        """Return what a running pipeline can go on by."""
        config, drift = self.config, self.drift
        return Settings(
            preprocess=self.steps if drift is None else (drift.step, *self.steps),
            model=self.model if drift is None else drift.model(self.model),
            batch=config.batch,
            workers=config.workers,
            queue=config.queue,
            delivery=config.delivery,
            dead_letter=config.dead_letter,
            provenance=self._provenance(),
        )

    def _dry_run(self, running: Assembly | None) -> Exception | None:
        """Pass zeros through steps and model. Raises what is known to be wrong with them; returns what they raise.

        A model that runs is left alone: others may be calling it.
        """
        config, model = self.config, self.model
        x = np.zeros((TRIED_ROWS, *config.record.feature_shape), config.record.numpy_dtype)
        try:
            with np.errstate(all="ignore"):
                for at, step in enumerate(self.steps):
                    with _placed(f"preprocess[{at}]", config.preprocess[at], config):
                        x = _stepped(step, x)
                if running is not None and model is running.model:
                    self.scores_shape = running.scores_shape
                elif len(x) and not is_async(model):
                    scores = checked_scores(self.model_name, model.score(x), len(x))
                    self.scores_shape = scores.shape[1:]
        except RetryableError as error:
            return error
        except StreambatchError:
            raise
        except Exception as error:
            return error
        return None

    def _take_over(self, running: Assembly) -> None:
        if self.config.preprocess == running.config.preprocess and any(map(has_memory, running.steps)):
            self.steps = running.steps
        if self.config.model == running.config.model and self.model_digest == running.model_digest:
            self.model = running.model

    def _compare(self, running: Assembly) -> None:
        if self.untried is not None and running.untried is None:
            problem = f"with zeros as features, steps and model raised {type(self.untried).__name__}: {self.untried}"
            raise ModelError(self.model_name, f"{problem}; those that run did not")
        if running.scores_shape is not None and self.scores_shape not in (None, running.scores_shape):
            wanted = ", ".join(map(str, ("n", *running.scores_shape)))
            given = (TRIED_ROWS, *(self.scores_shape or ()))
            raise ShapeError(f"scores of model {self.model_name}", f"({wanted}), as the model that runs gives", given)

    def _provenance(self) -> Provenance:
        config, model = self.config, self.model
        sink = config.sink.options
        return Provenance(
            config=config.effective,
            config_digest=config.digest,
            model={
                "type": config.model.type,
                "path": getattr(config.model.options, "path", None),
                "format": getattr(model, "format", config.model.type),
                "sha256": self.model_digest,
                "parameters": getattr(model, "parameters", None),
            },
            sink={"name": sink.name, "path": getattr(sink, "path", None), "format": sink.format},
        )


def load_config(path: str | Path, *, overrides: Sequence[str] = (), environ: Mapping[str, str] | None = None) -> Config:
    """Read and check a config with the parts that are installed. Raises ConfigError with every problem."""
    return configs.load_config(path, find_part, overrides=overrides, environ=environ)


def load_pipeline(
    path: str | Path,
    *,
    overrides: Sequence[str] = (),
    observer: Observer | None = None,
    environ: Mapping[str, str] | None = None,
) -> Pipeline:
    """Return the pipeline of a config file, ready to run.

    overrides: such as `batch.max_records=256`. environ: by default the process's own.
    Raises ConfigError with every problem of the config, StepError, ModelError or ShapeError for a part that won't do.
    """
    return Assembly(load_config(path, overrides=overrides, environ=environ)).pipeline(observer)


def _made(key: str, part: ConfiguredPart, config: Config) -> Any:
    """Build a step or load a model; what an option names and isn't there is a problem of the config."""
    make = part.options.load if key == "model" else part.options.build
    try:
        with _placed(key, part, config):
            return make(config.folder)
    except OptionError as error:
        problem = ConfigProblem(f"{key}.{error.option}", str(error.found), error.allowed)
    raise ConfigError([problem], where=str(config.path))


@contextmanager
def _placed(key: str, part: ConfiguredPart, config: Config) -> Iterator[None]:
    """Have the message about a step that won't do begin with the config and the key that is wrong in it."""
    try:
        yield
    except (ShapeError, StepError) as error:
        parameter = str(error).partition(" of preprocess step ")[0]
        if getattr(part.options, parameter, None) is not None:
            key = f"{key}.{parameter}"
        error.args = (f"{config.path}: {key}: {error}",)  # and not another error: its fields are its caller's
        raise


def _stepped(step: Any, x: FloatArray) -> FloatArray:
    """Return the rows that a step makes of `x` and keeps."""
    if has_memory(step):
        return step(step.initial_state(), x)[1]  # type: ignore[no-any-return]  # a step is whatever its plugin built
    result: FloatArray | tuple[FloatArray, BoolArray] = step(x)
    return result[0][result[1]] if isinstance(result, tuple) else result
