"""From a config to a pipeline that is ready to run: parts found, steps built, model loaded, shapes tried on zeros.

Only reads: nothing is opened for writing and no state is touched before the pipeline runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

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
from streambatch.core.parts import Model, Site, StatefulStep, Step
from streambatch.core.types import FloatArray
from streambatch.core.wrapping_scoring import as_model, as_step
from streambatch.durability.manifest import Provenance
from streambatch.pipeline.pipeline import Pipeline
from streambatch.pipeline.settings import Settings, describe
from streambatch.scoring.check import checked_scores
from streambatch.scoring.executors.choice import check_timeout
from streambatch.storage.folder import StateFolder

TRIED_ROWS = 2
"""Rows of zeros in a dry run: with one, a lost batch axis would go unseen."""


class Assembly:
    """The steps and the model of a config, and the pipeline of them."""

    def __init__(self, config: Config, running: Assembly | None = None) -> None:
        """Build the steps and load the model.

        running: the assembly of a running pipeline that is to be reloaded. Its steps are kept if one has memory and the
        config of steps is the same; its model is kept if it is the same. The new parts must do what the old ones could.

        Raises ConfigError, StepError or ModelError for a part that can't be made, ShapeError when steps and model
        don't fit the records.
        """
        self.config = config
        self.steps = tuple(_step(f"preprocess[{at}]", part, config) for at, part in enumerate(config.preprocess))
        self.model = _model(config.model, config)
        if running is not None:
            self._take_over(running)
        check_timeout(config.workers, self.model)
        self.scores_shape: tuple[int, ...] | None = None
        """The shape of one record's scores; None if it could not be tried."""
        self.untried: Exception | None = self._dry_run(running)
        """The error that the parts raised on zeros, except for wrong shapes: real records may still be scored."""
        if running is not None:
            self._compare(running)

    def pipeline(self, observer: Observer | None = None, folder: StateFolder | None = None) -> Pipeline:
        """Return the pipeline. folder: the state folder, if it is held already."""
        config = self.config
        description = describe(
            name=config.name,
            sources=[part.options for part in config.sources],
            record=config.record,
            limits=config.limits,
            sink=config.sink.options,
            state_dir=folder or config.state_dir,
            folder=config.folder,
            runs=config.runs,
            observer=observer,
        )
        return Pipeline.of(description, self.settings())

    @property
    def model_name(self) -> str:
        """What the model is called in messages."""
        return self.model.name

    @property
    def model_digest(self) -> str | None:
        """The model's sha256; None for a model without one."""
        return self.model.digest

    def settings(self) -> Settings:
        """Return the settings for a pipeline, or for the reload of one that runs."""
        config = self.config
        return Settings(
            preprocess=self.steps,
            model=self.model,
            batch=config.batch,
            workers=config.workers,
            queue=config.queue,
            delivery=config.delivery,
            dead_letter=config.dead_letter,
            provenance=self._provenance(),
        )

    def _dry_run(self, running: Assembly | None) -> Exception | None:
        """Pass zeros through steps and model. Raises errors of this package; returns any other that the parts raise.

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
                elif len(x) and not model.is_async:
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
        if self.config.preprocess == running.config.preprocess and any(step.is_stateful for step in running.steps):
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
        return Provenance(
            config=config.effective,
            config_digest=config.digest,
            model={
                "type": config.model.type,
                "path": as_model(config.model.options).location,
                "format": model.format or config.model.type,
                "sha256": self.model_digest,
                "parameters": model.parameters,
            },
            sink=config.sink.sink.describe(),
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


def _step(key: str, part: ConfiguredPart, config: Config) -> Step | StatefulStep:
    with _option_problems(key, config), _placed(key, part, config):
        return as_step(part.options).build(_site(key, config))


def _model(part: ConfiguredPart, config: Config) -> Model:
    with _option_problems("model", config), _placed("model", part, config):
        return as_model(part.options).build(_site("model", config))


def _site(part: str, config: Config) -> Site:
    return Site(pipeline=config.name, part=part, folder=config.folder, state_dir=config.state_dir)


@contextmanager
def _option_problems(key: str, config: Config) -> Iterator[None]:
    """Report what an option names and isn't there, such as a library, as a problem of the config."""
    try:
        yield
    except OptionError as error:
        problem = ConfigProblem(f"{key}.{error.option}", str(error.found), error.allowed)
        raise ConfigError([problem], where=str(config.path)) from None


@contextmanager
def _placed(key: str, part: ConfiguredPart, config: Config) -> Iterator[None]:
    """Begin the message about a part that won't do with the config and the key that is wrong in it."""
    try:
        yield
    except (ShapeError, StepError) as error:
        parameter = str(error).partition(" of preprocess step ")[0]
        if getattr(part.options, parameter, None) is not None:
            key = f"{key}.{parameter}"
        error.args = (f"{config.path}: {key}: {error}",)  # and not another error: its fields are its caller's
        raise


def _stepped(step: Step | StatefulStep, x: FloatArray) -> FloatArray:
    """Return the rows that a step makes of `x` and keeps."""
    if step.is_stateful:
        return step(step.initial_state(), x)[1]
    result = step(x)
    return result[0][result[1]] if isinstance(result, tuple) else result
