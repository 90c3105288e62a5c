"""streambatch through its public API; imported by name, so that lazy imports are over before the time is taken."""

import asyncio
import shutil
from pathlib import Path
from typing import Literal

import anyio
import datasketches  # noqa: F401  # else it is imported while the time is taken
from prometheus_client import CollectorRegistry, generate_latest

from benchmarks.feed import BIAS, FEATURES, MEAN, SCALE, WEIGHTS
from streambatch import (
    BatchPolicy,
    FileSink,
    FileSource,
    LinearModel,
    Pipeline,
    RecordSchema,
    RunReport,
    Standardize,
    Workers,
)
from streambatch.core.clock import SystemClock
from streambatch.core.events import Observer, Observers
from streambatch.observe import Metrics, MetricsObserver
from streambatch.observe.drift import Drift, DriftOptions

RECORD = RecordSchema(id="id", features="features", shape=(FEATURES,), dtype="float32")

SCRAPE_SECONDS = 5.0


def run(
    source: Path,
    target: Path,
    batch: int,
    executor: Literal["inline", "thread"],
    *,
    with_state: bool = False,
    with_metrics: bool = False,
    with_drift: bool = False,
) -> None:
    """Score `source` into `target` with one worker.

    with_state: exactly once, with a checkpoint a second. with_metrics: scraped now and then. with_drift: those of drift
    as well.
    """
    folder = target.with_name("state")
    shutil.rmtree(folder, ignore_errors=True)
    observer = MetricsObserver() if with_metrics else None
    drift = Drift(DriftOptions(enabled=True), RECORD, SystemClock()) if with_drift else None
    scored = pipeline(source, target, batch, executor, folder if with_state else None, observer, drift)
    report = asyncio.run(scored.run() if observer is None else _run_scraped(scored, observer, drift))
    if report.records["scored"] != report.records["received"]:
        raise RuntimeError(f"not every record was scored: {report.records}")


async def _run_scraped(scored: Pipeline, observer: MetricsObserver, drift: Drift | None) -> RunReport:
    registry = CollectorRegistry()
    Metrics(registry).attach(scored, observer, model_format="linear", drift=drift)
    async with anyio.create_task_group() as along:
        along.start_soon(_scrape, registry)
        if drift is not None:
            along.start_soon(drift.keep)
        report = await scored.run()
        along.cancel_scope.cancel()
    return report


async def _scrape(registry: CollectorRegistry) -> None:
    while True:
        await anyio.sleep(SCRAPE_SECONDS)
        generate_latest(registry)


def pipeline(
    source: Path,
    target: Path,
    batch: int,
    executor: Literal["inline", "thread"],
    state_dir: Path | None = None,
    observer: Observer | None = None,
    drift: Drift | None = None,
) -> Pipeline:
    standardize, model = Standardize(MEAN, SCALE), LinearModel(WEIGHTS, BIAS)
    return Pipeline(
        name="benchmark",
        sources=[FileSource(str(source))],
        record=RECORD,
        batch=BatchPolicy(max_records=batch, max_wait=0.05),
        preprocess=[standardize],
        model=model,
        sink=FileSink(str(target), if_exists="replace"),
        workers=Workers(executor=executor, count=1),
        state_dir=state_dir,
        observer=observer if drift is None else Observers(observer or Observer(), drift),
    )
