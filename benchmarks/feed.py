"""The input of all cases: JSON records of 134 bytes on average with ten features, the same for the same seed; and the
numbers of the model that scores them."""

import os
import tempfile
from itertools import chain
from pathlib import Path

import numpy as np

FEATURES = 10
MEAN = np.linspace(-0.5, 0.5, FEATURES)
SCALE = np.linspace(1.5, 2.5, FEATURES)
WEIGHTS = np.linspace(-1.0, 1.0, FEATURES)
BIAS = 0.25

_RECORD = b'{"id":%d,"features":[' + b",".join([b"%.7f"] * FEATURES) + b"]}\n"
_FIRST_ID = 10_000_000
_BLOCK_RECORDS = 2_000


def feed(records: int, seed: int = 1) -> Path:
    """Return a file of `records` lines, made now or by an earlier run."""
    path = folder() / f"feed-1-{records}-{seed}.jsonl"
    if not path.exists():
        unfinished = path.with_suffix(f".{os.getpid()}")
        write(unfinished, records, seed)
        unfinished.replace(path)
    return path


def folder() -> Path:
    """Return the folder of this user's feeds and outputs."""
    path = Path(tempfile.gettempdir()) / f"streambatch-benchmarks-{os.getuid()}"
    path.mkdir(mode=0o700, exist_ok=True)
    return path


def write(path: Path, records: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    with path.open("wb") as file:
        for first in range(0, records, _BLOCK_RECORDS):
            count = min(_BLOCK_RECORDS, records - first)
            features = random.normal(MEAN, SCALE, (count, FEATURES)).clip(-9.9, 9.9)
            ids = np.arange(first, first + count) + _FIRST_ID
            values = np.column_stack((ids, features)).tolist()
            file.write(_RECORD * count % tuple(chain.from_iterable(values)))
