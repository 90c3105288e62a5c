"""From a config to a pipeline that is ready to run: parts found, steps built, model loaded, shapes tried on zeros.

Only reads: nothing is opened for writing and no state is touched before the pipeline runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from streambatch import config as configs
from streambatch.config import Config
from streambatch.durability import Provenance
from streambatch.errors import ConfigError, ConfigProblem, OptionError, RetryableError, StreambatchError
from streambatch.events import Observer
from streambatch.pipeline import Pipeline
from streambatch.plugins import find_part
from streambatch.records import BoolArray, FloatArray
from streambatch.scoring.check import checked_scores
from streambatch.scoring.executors import check_timeout
from streambatch.state.folder import StateFolder

TRIED_ROWS = 2
"""Rows of zeros in a dry run: with one, a lost batch axis would go unseen."""


class Assembly:
    """What a config was made into: steps, model, and from them the pipeline."""

    def __init__(self, config: Config) -> None:
        """Build the steps and load the model.

        Raises ConfigError, StepError or ModelError for a part that can't be made, ShapeError when steps and model
        don't fit the records.
        """
        self.config = config
        self.steps = tuple(_made(f"preprocess[{at}]", part, config) for at, part in enumerate(config.preprocess))
        self.model = _made("model", config.model, config)
        check_timeout(config.workers, self.model)
        self.untried: Exception | None = _dry_run(config, self.steps, self.model)
        """What the parts raised on zeros, other than for their shape: records may still fare better."""

    def pipeline(self, observer: Observer | None = None, folder: StateFolder | None = None) -> Pipeline:
        """Return the pipeline. folder: the state folder, if it is held already."""
        config = self.config
        return Pipeline(
            name=config.name,
            sources=[part.options for part in config.sources],
            record=config.record,
            batch=config.batch,
            preprocess=self.steps,
            model=self.model,
            workers=config.workers,
            queue=config.queue,
            limits=config.limits,
            delivery=config.delivery,
            dead_letter=config.dead_letter,
            sink=config.sink.options,
            state_dir=folder or config.state_dir,
            runs=config.runs,
            provenance=self._provenance(),
            observer=observer,
        )

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
                "sha256": getattr(model, "digest", None),
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


def _made(key: str, part: configs.Part, config: Config) -> Any:
    """Build a step or load a model; what an option names and isn't there is a problem of the config."""
    make = part.options.load if key == "model" else part.options.build
    try:
        return make(config.folder)
    except OptionError as error:
        problem = ConfigProblem(f"{key}.{error.option}", str(error.found), error.allowed)
    raise ConfigError([problem], where=str(config.path))


def _dry_run(config: Config, steps: Sequence[Any], model: Any) -> Exception | None:
    """Pass zeros through steps and model. Raises what is known to be wrong with them; returns what they raise."""
    x = np.zeros((TRIED_ROWS, *config.record.feature_shape), config.record.numpy_dtype)
    try:
        with np.errstate(all="ignore"):
            for step in steps:
                x = _stepped(step, x)
            if len(x) and not getattr(model, "is_async", False):
                checked_scores(str(getattr(model, "name", config.model.type)), model.score(x), len(x))
    except RetryableError as error:
        return error
    except StreambatchError:
        raise
    except Exception as error:
        return error
    return None


def _stepped(step: Any, x: FloatArray) -> FloatArray:
    """Return the rows that a step makes of `x` and keeps."""
    if getattr(step, "is_stateful", False):
        return step(step.initial_state(), x)[1]  # type: ignore[no-any-return]  # a step is whatever its plugin built
    result: FloatArray | tuple[FloatArray, BoolArray] = step(x)
    return result[0][result[1]] if isinstance(result, tuple) else result
