"""Arrow in, Arrow out, against numpy scoring the same arrays in memory: `python -m benchmarks.columnar`.

Both score batches of 65,536 records of ten float32 features, standardised and through a linear model, one after the
other, in turns. The pipeline reads an IPC stream from a file and writes one; numpy has its arrays ready and keeps the
scores. The ratio of their times is what counts.
"""

import argparse
import asyncio
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.ipc

from benchmarks.feed import BIAS, FEATURES, MEAN, SCALE, WEIGHTS, folder
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

BATCH = 1 << 16
AT_LEAST = 0.4
_TOLERANCE = 1e-4
Floats = npt.NDArray[np.floating[Any]]


def main() -> int:
    """Print times and ratio. Returns 1 when the pipeline wrote other scores than numpy's."""
    options = _parser().parse_args()
    arrays = [_features(seed) for seed in range(options.batches)]
    source, target = folder() / f"feed-{BATCH}-{options.batches}.arrows", folder() / "scores.arrows"
    if not source.exists():
        _write(source, arrays)
    records = BATCH * options.batches
    numpy_seconds, pipeline_seconds = [], []
    for _ in range(options.rounds):
        seconds, expected = _numpy(arrays)
        numpy_seconds.append(seconds)
        pipeline_seconds.append(_pipeline(source, target))
        if not _agree(target, expected):
            print("the pipeline wrote other ids or scores than numpy's")
            return 1
    ratios = [ours / theirs for ours, theirs in zip(numpy_seconds, pipeline_seconds, strict=True)]
    print(f"numpy, in memory:    {records / min(numpy_seconds) / 1e6:6.1f} M records/s")
    print(f"Arrow in, Arrow out: {records / min(pipeline_seconds) / 1e6:6.1f} M records/s")
    best = min(numpy_seconds) / min(pipeline_seconds)
    print(f"ratio: {best:.2f} of the best runs, {median(ratios):.2f} median; at least {AT_LEAST}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.columnar", description=__doc__)
    parser.add_argument("--batches", type=int, default=64, help=f"batches of {BATCH} records (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="times that each is run (default: %(default)s)")
    return parser


def _features(seed: int) -> Floats:
    return np.random.default_rng(seed).normal(MEAN, SCALE, (BATCH, FEATURES)).astype(np.float32)


def _write(path: Path, arrays: list[Floats]) -> None:
    schema = pa.schema({"id": pa.int64(), "features": pa.list_(pa.float32(), FEATURES)})
    unfinished = path.with_suffix(".unfinished")
    with pa.ipc.new_stream(unfinished, schema) as writer:
        for number, x in enumerate(arrays):
            ids = pa.array(np.arange(number * BATCH, (number + 1) * BATCH))
            features = pa.FixedSizeListArray.from_arrays(pa.array(x.reshape(-1)), FEATURES)
            writer.write_batch(pa.record_batch([ids, features], schema=schema))
    unfinished.replace(path)


def _numpy(arrays: list[Floats]) -> tuple[float, list[Floats]]:
    """Do what the pipeline does between its ends, with the checks it makes."""
    mean, scale, weights = MEAN.astype(np.float32), SCALE.astype(np.float32), WEIGHTS.astype(np.float32)
    bias = np.array(BIAS, np.float32)
    scores: list[Floats] = []
    started = time.perf_counter()
    for x in arrays:
        if not np.isfinite(x).all():
            raise ValueError("a feature is not finite")
        y: Floats = (x - mean) / scale @ weights + bias
        if not np.isfinite(y).all():
            raise ValueError("a score is not finite")
        scores.append(y)
    return time.perf_counter() - started, scores


def _pipeline(source: Path, target: Path) -> float:
    pipeline = Pipeline(
        sources=[FileSource(str(source), format="arrow")],
        record=RecordSchema(id="id", features="features", shape=(FEATURES,)),
        batch=BatchPolicy(max_records=BATCH, max_bytes=16 << 20),
        preprocess=[Standardize(MEAN, SCALE)],
        model=LinearModel(WEIGHTS, BIAS),
        sink=FileSink(str(target), format="arrow", if_exists="replace"),
        workers=Workers(executor="inline"),
    )
    started = time.perf_counter()
    asyncio.run(pipeline.run())
    return time.perf_counter() - started


def _agree(target: Path, expected: list[Floats]) -> bool:
    with pa.ipc.open_stream(target) as reader:
        table = reader.read_all()
    scores = np.concatenate(expected)
    if not np.array_equal(table["id"].to_numpy(), np.arange(len(scores))):
        return False
    return bool(np.abs(table["score"].to_numpy() - scores).max() <= _TOLERANCE)


if __name__ == "__main__":
    raise SystemExit(main())
