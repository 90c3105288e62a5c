"""The hand-written synchronous loop, with the checks of streambatch: the shape of each record, finite features and
scores, an id that is an integer or a string. What is wrong raises.

Measured and slower: blocks cut at newlines and decoded whole, small read buffers, `np.fromiter` over all features
(packing a record's tuple at once is a tenth faster over all), dicts for structs, parameters that broadcast. Without
the garbage collector it is no faster.
"""

from itertools import islice
from pathlib import Path
from struct import Struct

import msgspec
import numpy as np

from benchmarks.feed import BIAS, FEATURES, MEAN, SCALE, WEIGHTS

_BUFFER_BYTES = 1 << 20


class Record(msgspec.Struct, gc=False):
    id: int | str
    features: tuple[float, float, float, float, float, float, float, float, float, float]


class Score(msgspec.Struct, gc=False):
    id: int | str
    score: float


def run(source: Path, target: Path, batch: int) -> None:
    """Score `source` into `target` in batches of `batch` records."""
    decode = msgspec.json.Decoder(Record).decode
    encode = msgspec.json.Encoder().encode_lines
    pack = Struct(f"{FEATURES}d").pack
    means, scales = (np.tile(row.astype(np.float32), (batch, 1)) for row in (MEAN, SCALE))
    weights, bias = WEIGHTS.astype(np.float32), np.float32(BIAS)
    with source.open("rb", _BUFFER_BYTES) as lines, target.open("wb", _BUFFER_BYTES) as scores_file:
        while records := list(map(decode, islice(lines, batch))):
            packed = b"".join([pack(*record.features) for record in records])
            x = np.frombuffer(packed).astype(np.float32).reshape(-1, FEATURES)
            if not np.isfinite(x).all():
                raise ValueError("a feature is not finite")
            x -= means[: len(x)]
            x /= scales[: len(x)]
            scores = x @ weights + bias
            if not np.isfinite(scores).all():
                raise ValueError("a score is not finite")
            ids = [record.id for record in records]
            scores_file.write(encode(list(map(Score, ids, scores.tolist()))))
