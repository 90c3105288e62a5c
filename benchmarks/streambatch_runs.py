"""streambatch through its public API; imported by name, so that lazy imports are over before the time is taken."""

import asyncio
import shutil
from pathlib import Path
from typing import Literal

from benchmarks.feed import BIAS, FEATURES, MEAN, SCALE, WEIGHTS
from streambatch import (
    BatchPolicy,
    FileSink,
    FileSource,
    LinearModel,
    Pipeline,
    RecordSchema,
    Standardize,
    Workers,
)


def run(
    source: Path, target: Path, batch: int, executor: Literal["inline", "thread"], *, with_state: bool = False
) -> None:
    """Score `source` into `target` with one worker. with_state: exactly once, with a checkpoint a second."""
    folder = target.with_name("state")
    shutil.rmtree(folder, ignore_errors=True)
    report = asyncio.run(pipeline(source, target, batch, executor, folder if with_state else None).run())
    if report.records["scored"] != report.records["received"]:
        raise RuntimeError(f"not every record was scored: {report.records}")


def pipeline(
    source: Path, target: Path, batch: int, executor: Literal["inline", "thread"], state_dir: Path | None = None
) -> Pipeline:
    return Pipeline(
        name="benchmark",
        sources=[FileSource(str(source))],
        record=RecordSchema(id="id", features="features", shape=(FEATURES,), dtype="float32"),
        batch=BatchPolicy(max_records=batch, max_wait=0.05),
        preprocess=[Standardize(MEAN, SCALE)],
        model=LinearModel(WEIGHTS, BIAS),
        sink=FileSink(str(target), if_exists="replace"),
        workers=Workers(executor=executor, count=1),
        state_dir=state_dir,
    )
