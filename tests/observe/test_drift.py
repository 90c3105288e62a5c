"""How inputs and scores are distributed, as metrics tell it, and that looking changes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

import streambatch as sb
from streambatch.core.errors import ConfigError, OptionError
from streambatch.core.events import Observer, Observers
from streambatch.core.types import FloatArray
from streambatch.observe import Metrics, MetricsObserver
from streambatch.observe.drift import Drift, DriftOptions, watched_features
from streambatch.observe.sampling import HELD_ROWS, Samples
from tests.moved_clock import MovedClock
from tests.observe.scrapes import Scrape

RECORD = sb.RecordSchema(id="id", features="x", shape=(3,), dtype="float64", missing="nan")
NAMED = sb.RecordSchema(id="id", features=["temp", "load"], dtype="float64")


@given(st.lists(st.integers(0, 700), max_size=30), st.integers(1, 64))
def test_samples_are_rows_that_came_and_bounded(sizes: list[int], rows_per_batch: int) -> None:
    samples = Samples(2, rows_per_batch, [2, 0])
    came: set[tuple[float, float]] = set()
    for size in sizes:
        batch = np.random.default_rng(size).random((size, 3), np.float32)
        came.update((row[2], row[0]) for row in batch.tolist())
        samples.add(batch)
    drained = samples.drain()
    assert {tuple(row) for row in drained.tolist()} <= came
    assert len(drained) <= min(HELD_ROWS, rows_per_batch * len(sizes))
    assert len(drained) >= min(HELD_ROWS, sum(map(bool, sizes)))
    assert len(samples.drain()) == 0


def test_when_batches_come_faster_than_rows_are_drained_samples_are_of_the_whole_time() -> None:
    samples = Samples(2, 16, [1, 0])
    first, second = (_sampled(samples, batches=2_000) for _ in range(2))
    assert len(first) == HELD_ROWS
    numbers = second[:, 0]
    assert HELD_ROWS / 2 < len(second) <= HELD_ROWS
    assert numbers.min() < 100
    assert numbers.max() > 1_900
    samples.add(np.zeros((64, 2), np.float32))
    samples.drain()
    samples.add(np.zeros((64, 2), np.float32))
    assert len(samples.drain()) == 16, "fewer batches come, and none is passed over any more"


def _sampled(samples: Samples, batches: int) -> FloatArray:
    for number in range(batches):
        samples.add(np.full((64, 2), number, np.float32))
    return samples.drain()


def test_quantiles_and_missing_features_are_those_of_the_last_windows() -> None:
    clock = MovedClock()
    drift = Drift(DriftOptions(enabled=True, features=[0, 2], window=60.0, rows_per_batch=1000), RECORD, clock)
    rng = np.random.default_rng(1)
    for mean in (0.0, 100.0, 100.0):
        for _ in range(20):
            x = rng.normal(mean, 1.0, (200, 3))
            x[::4, 2] = np.nan
            drift.features_seen(x)
            drift.fold()
        clock.now += 61.0
        first, second = drift.features()
        assert (first.label, second.label) == ("0", "2")
        assert first.missing == 0.0
        assert second.missing == pytest.approx(0.25)
    first, second = drift.features()
    assert first.quantiles[0.5] == pytest.approx(100.0, abs=0.2)
    assert second.quantiles[0.05] == pytest.approx(98.36, abs=0.4)
    assert drift.sampled == 12_000


@pytest.mark.anyio
@pytest.mark.parametrize("is_async", [False, True])
async def test_looking_changes_no_score_and_sees_rows_as_they_came_and_scores_as_the_model_gave_them(
    is_async: bool,
) -> None:
    class Awaited:
        is_async = True

        async def score(self, x: Any) -> Any:
            return x @ np.ones((3, 2))

    drift = Drift(DriftOptions(enabled=True), RECORD, MovedClock())

    async def scored(observer: Observer) -> bytes:
        sink = sb.MemorySink()
        pipeline = sb.Pipeline(
            sources=[sb.MemorySource([b'{"id": 1, "x": [0, 1, 2]}\n{"id": 2, "x": [3, 4, null]}\n'])],
            record=RECORD,
            preprocess=[sb.Impute(5.0)],
            model=Awaited() if is_async else sb.LinearModel(np.ones((3, 2))),
            sink=sink,
            observer=observer,
        )
        await pipeline.run()
        return b"".join(sink.payloads)

    assert await scored(drift) == await scored(Observer())
    drift.fold()
    assert drift.sampled == 2
    assert [feature.missing for feature in drift.features()] == [0.0, 0.0, 0.5]
    assert [score.quantiles[0.95] for score in drift.scores()] == [12.0, 12.0]


@pytest.mark.anyio
async def test_drift_is_served(tmp_path: Path) -> None:
    registry, observer = CollectorRegistry(), MetricsObserver()
    drift = Drift(DriftOptions(enabled=True), NAMED, MovedClock())
    sink = sb.MemorySink()
    pipeline = sb.Pipeline(
        sources=[sb.MemorySource([b'{"id": %d, "temp": %d, "load": 1}\n' % (n, n) for n in range(1000)])],
        record=NAMED,
        model=sb.LinearModel([2.0, 0.0]),
        sink=sink,
        observer=Observers(observer, drift),
    )
    Metrics(registry).attach(pipeline, observer, model_format="linear", drift=drift)
    report = await pipeline.run()
    assert report.records["scored"] == 1000
    scrape = Scrape(registry)
    assert scrape.value("drift_sampled_records_total") > 0
    assert 100 < scrape.value("drift_feature_quantile", feature="temp", q="0.5") < 900
    assert scrape.value("drift_feature_quantile", feature="load", q="0.95") == 1.0
    assert scrape.value("drift_feature_missing_ratio", feature="temp") == 0.0
    median = scrape.value("drift_score_quantile", output="0", q="0.5")
    assert 200 < median < 1800
    assert len(list(scrape.find("drift_score_quantile"))) == 3


def test_which_features_are_watched() -> None:
    assert watched_features(DriftOptions(), NAMED) == (["temp", "load"], [0, 1])
    assert watched_features(DriftOptions(features=["load"]), NAMED) == (["load"], [1])
    wide = sb.RecordSchema(id="id", features="x", shape=(4, 5))
    assert watched_features(DriftOptions(), wide) == ([str(n) for n in range(10)], list(range(10)))
    with pytest.raises(ConfigError, match=r"drift.features: found 'wind'; allowed: temp, load"):
        watched_features(DriftOptions(features=["wind"]), NAMED)
    with pytest.raises(ConfigError, match=r"drift.features: found 20; allowed: places 0 to 19"):
        watched_features(DriftOptions(features=[20]), wide)


@pytest.mark.parametrize("options", [{"features": list(range(11))}, {"features": [1, 1]}, {"quantiles": []}])
def test_labels_are_bounded(options: Any) -> None:
    with pytest.raises((OptionError, ConfigError), match="none of them twice"):
        DriftOptions(**options)
