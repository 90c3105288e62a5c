"""Checks what a case wrote: every record once, in order, with the score that numpy gives in double precision."""

from functools import cache
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from benchmarks.cases import CaseError
from benchmarks.feed import BIAS, FEATURES, MEAN, SCALE, WEIGHTS
from benchmarks.loop import Record, Score

_TOLERANCE = 1e-4
"""Far above what float32 loses here, far below what a wrong record or model would give."""

Columns = tuple[list[int | str], npt.NDArray[np.float64]]


def check(source: Path, target: Path) -> None:
    """Raises CaseError unless `target` holds the scores of `source`."""
    ids, scores = _expected(source)
    rows = msgspec.json.Decoder(Score).decode_lines(target.read_bytes())
    if [row.id for row in rows] != ids:
        raise CaseError(f"expected {len(ids)} ids in the order of the feed, found {len(rows)}, or another order")
    off = float(np.abs(np.fromiter((row.score for row in rows), float) - scores).max(initial=0))
    if not off <= _TOLERANCE:
        raise CaseError(f"expected numpy's scores to {_TOLERANCE}, found one that is off by {off:g}")


@cache
def _expected(source: Path) -> Columns:
    records = msgspec.json.Decoder(Record).decode_lines(source.read_bytes())
    x = np.array([record.features for record in records], np.float64).reshape(-1, FEATURES)
    return [record.id for record in records], (x - MEAN) / SCALE @ WEIGHTS + BIAS
