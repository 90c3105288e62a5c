"""The recent distribution of features and scores: the share that is missing, and quantiles, by a sketch.

Quantiles are those of the last one to two windows, from a sample; a KLL sketch gives them to about 1.5 % of rank. Needs
the extra `drift`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import field
from math import prod
from typing import Annotated, Any, NamedTuple

import anyio
import numpy as np
from pydantic import Field

from streambatch.core.clock import Clock
from streambatch.core.errors import ConfigError, ConfigProblem, OptionError
from streambatch.core.events import Observer
from streambatch.core.options import options
from streambatch.core.schema import RecordSchema
from streambatch.core.types import FloatArray
from streambatch.core.units import Duration
from streambatch.observe.sampling import Samples

WATCHED_MAX = 10
"""Features, and numbers of a score, that are watched at most: each is a value of a label."""
QUANTILES_MAX = 5
FOLD_SECONDS = 1.0
_PRECISION = 200


@options
class DriftOptions:
    """Watch how features and scores are distributed, in metrics."""

    enabled: bool = False
    """Needs the extra `drift`."""
    features: list[str] | list[Annotated[int, Field(ge=0)]] | None = None
    """Which features, at most 10: names where `[record] features` is a list of them, else places in the array, from 0.
    By default the first 10."""
    quantiles: list[Annotated[float, Field(ge=0, le=1)]] = field(default_factory=lambda: [0.05, 0.5, 0.95])
    """Which quantiles, at most 5."""
    window: Annotated[Duration, Field(gt=0)] = 300.0
    """What lies further back than twice that is forgotten."""
    rows_per_batch: Annotated[int, Field(ge=1, le=1024)] = 16
    """Records of a batch that are looked at."""

    def __post_init__(self) -> None:
        if self.features is not None and not 1 <= len(set(self.features)) == len(self.features) <= WATCHED_MAX:
            raise OptionError("features", f"{len(self.features)} of them", f"1 to {WATCHED_MAX}, none of them twice")
        if not 1 <= len(set(self.quantiles)) == len(self.quantiles) <= QUANTILES_MAX:
            raise OptionError(
                "quantiles", f"{len(self.quantiles)} of them", f"1 to {QUANTILES_MAX}, none of them twice"
            )


class Watched(NamedTuple):
    """The recent distribution of a feature, or of a number of a score. missing: the share; None without samples."""

    label: str
    missing: float | None
    quantiles: Mapping[float, float]


class Drift(Observer):
    """Samples one pipeline as its observer, and keeps the distributions. Run `keep` along with the pipeline.

    Raises ConfigError for features that records don't have, or when the library is not there.
    """

    def __init__(self, options: DriftOptions, record: RecordSchema, clock: Clock) -> None:
        self._options, self._clock = options, clock
        self._labels, columns = watched_features(options, record)
        self._features = Samples(len(columns), options.rows_per_batch, columns)
        self._scores = Samples(WATCHED_MAX, options.rows_per_batch)
        self.sampled = 0
        self._windows = [self._window(), self._window()]
        self._rolled_at = clock.monotonic()

    def features_seen(self, x: FloatArray) -> None:
        self._features.add(x)

    def scores_seen(self, scores: FloatArray) -> None:
        self._scores.add(scores)

    async def keep(self) -> None:
        """Fold the samples into the sketches every FOLD_SECONDS, until cancelled."""
        while True:
            await anyio.sleep(FOLD_SECONDS)
            self.fold()

    def fold(self) -> None:
        """Fold the samples since the last call into the sketches."""
        now = self._clock.monotonic()
        if now - self._rolled_at >= self._options.window:
            self._windows, self._rolled_at = [self._window(), self._windows[0]], now
        features, scores = self._features.drain(), self._scores.drain()
        self.sampled += len(features)
        self._windows[0].add(features, scores)

    def features(self) -> Iterator[Watched]:
        """Yield the distribution of each watched feature."""
        yield from self._watched(self._labels, [window.features for window in self._windows])

    def scores(self) -> Iterator[Watched]:
        """Yield the distribution of each number of a score."""
        sketches = [window.scores for window in self._windows]
        there = [str(at) for at in range(WATCHED_MAX) if any(each[at].count > each[at].missing for each in sketches)]
        yield from self._watched(there, sketches)

    def _watched(self, labels: Sequence[str], windows: Sequence[Sequence[_Sketch]]) -> Iterator[Watched]:
        for label, sketches in zip(labels, zip(*windows, strict=True), strict=False):
            count, missing = sum(each.count for each in sketches), sum(each.missing for each in sketches)
            quantiles = _quantiles([each.sketch for each in sketches], self._options.quantiles)
            yield Watched(label, missing / count if count else None, quantiles)

    def _window(self) -> _Window:
        return _Window(len(self._labels))


def watched_features(options: DriftOptions, record: RecordSchema) -> tuple[list[str], list[int]]:
    """Return labels and places of the features to watch. Raises ConfigError for those that records don't have."""
    there = record.features if not isinstance(record.features, str) else range(prod(record.feature_shape))
    wanted = options.features if options.features is not None else list(there)[:WATCHED_MAX]
    unknown = [name for name in wanted if name not in there]
    if unknown:
        allowed = f"places 0 to {len(there) - 1}" if isinstance(there, range) else ", ".join(map(str, there))
        raise ConfigError([ConfigProblem("drift.features", repr(unknown[0]), allowed)])
    return [str(name) for name in wanted], [list(there).index(name) for name in wanted]


class _Sketch:
    """One number of many records."""

    def __init__(self) -> None:
        self.sketch: Any = _library().kll_floats_sketch(_PRECISION)
        self.count = self.missing = 0

    def add(self, values: FloatArray) -> None:
        known = values[np.isfinite(values)]
        self.count += len(values)
        self.missing += len(values) - len(known)
        if len(known):
            self.sketch.update(known)


class _Window:
    def __init__(self, features: int) -> None:
        self.features = [_Sketch() for _ in range(features)]
        self.scores = [_Sketch() for _ in range(WATCHED_MAX)]

    def add(self, features: FloatArray, scores: FloatArray) -> None:
        for sketches, rows in ((self.features, features), (self.scores, scores)):
            for sketch, column in zip(sketches, rows.T, strict=True):
                sketch.add(np.ascontiguousarray(column))


def _quantiles(sketches: Sequence[Any], wanted: Sequence[float]) -> dict[float, float]:
    merged = _library().kll_floats_sketch(_PRECISION)
    for sketch in sketches:
        merged.merge(sketch)
    if merged.is_empty():
        return {}
    return dict(zip(wanted, map(float, merged.get_quantiles(list(wanted))), strict=True))


def _library() -> Any:
    try:
        import datasketches
    except ImportError:
        problem = ConfigProblem(
            "drift.enabled", "true without its library", "true with pip install 'streambatch[drift]'"
        )
        raise ConfigError([problem]) from None
    return datasketches
