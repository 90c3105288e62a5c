"""A transform over lines that hold one number each, so that tests say what they mean in bytes."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from streambatch.core.batches import Batch, Stamps
from streambatch.core.chunks import Chunk
from streambatch.core.codec import Framer, FramerStart, Framing
from streambatch.core.outcomes import RecordId, Reject, Rows
from streambatch.core.parts import Site
from streambatch.core.types import FloatArray
from streambatch.core.wrapping_scoring import as_model, as_step
from streambatch.scoring.transform import SourceFormat, Transform
from tests.chunks import chunk_of


class NumberDecoder:
    """`7` is a row with id 7; what is no number is a reject."""

    def decode(self, chunks: Sequence[Chunk]) -> Rows:
        ids: list[RecordId] = []
        values, index, rejects = [], [], []
        place = 0
        for chunk in chunks:
            for at in range(chunk.count):
                raw = bytes(chunk.raw(at)).strip()
                try:
                    values.append(float(raw))
                    ids.append(raw.decode())
                    index.append(place)
                except ValueError:
                    position = chunk.position_of(at)
                    rejects.append(Reject(place, chunk.partition, position, "decode", "invalid_json", "no number", raw))
                place += 1
        where = np.array(index, np.int64) if rejects else None
        return Rows(ids, np.array(values).reshape(-1, 1), [ids], where, rejects)


class LineFraming(Framing):
    name = "lines"

    def framer_from(self, start: FramerStart) -> Framer:
        raise NotImplementedError  # tests of the transform frame nothing

    def strip(self, raw: memoryview) -> bytes:
        return bytes(raw).rstrip(b"\n")


class LineEncoder:
    """`id=score|carried` a line."""

    def header(self) -> bytes:
        return b""

    def encode(self, ids: Sequence[RecordId], scores: FloatArray, carry: Sequence[Sequence[Any]]) -> bytes:
        rows = zip(ids, scores.tolist(), carry[0], strict=True)
        return b"".join(b"%s=%s|%s\n" % (str(i).encode(), str(s).encode(), str(c).encode()) for i, s, c in rows)


def transform_of(model: Any, steps: Sequence[Any] = (), sources: Sequence[str] = ("in",)) -> Transform:
    source_format = SourceFormat(NumberDecoder(), LineFraming(), lambda rows, chunks: rows)
    parts = [as_step(step).build(Site()) for step in steps]
    scorer = as_model(model).build(Site())
    scorer.name = "m"
    return Transform(dict.fromkeys(sources, source_format), parts, scorer, LineEncoder())


def batch_of(*chunks: Chunk, sequence: int = 1) -> Batch:
    count, size = sum(chunk.count for chunk in chunks), sum(chunk.size for chunk in chunks)
    return Batch(sequence, chunks, count, size, "size", Stamps(0, 0))


def numbers(*values: int) -> Chunk:
    return chunk_of([b"%d" % value for value in values])


class Doubling:
    """A model that doubles, and fails on what `poison` holds."""

    def __init__(self, *poison: float) -> None:
        self.poison, self.calls = set(poison), 0

    def score(self, x: FloatArray) -> FloatArray:
        self.calls += 1
        if self.poison & set(x[:, 0].tolist()):
            raise ValueError("poison")
        return 2 * x[:, 0]
