"""Batches whose timestamps are made up, for tests of what is counted from them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from hypothesis import strategies as st

from streambatch.core.batches import Batch, Stamps
from streambatch.core.chunks import Partition
from streambatch.core.outcomes import Outcome, Reject, Stage
from tests.chunks import chunk_of

PARTS = (
    "source", "queue", "batch", "worker", "decode", "validate", "preprocess", "score", "encode", "sink_wait", "sink",
)  # fmt: skip
"""What a record's time from arrival to written is made of, in order."""
STAMPS = (
    "closed", "started", "decoded", "validated", "preprocessed", "scored", "encoded", "sink_started", "written",
    "durable",
)  # fmt: skip

Times = Sequence[float]
EARLY, LATE = (7.0, 7.5, 9.0), (9.0, 9.0, 9.5)
"""Two chunks: arrived, entered, taken."""
TIMES = [10.0, 10.5, 11.0, 11.0, 11.25, 12.0, 12.5, 13.0, 13.25, 14.0]
"""What became of a batch of them, in the order of STAMPS."""


def batch_of(
    chunks: Sequence[tuple[int, Times]], times: Times, *, sequence: int = 0, source: str = "rides_in"
) -> Batch:
    """Return a batch. chunks: records and times (arrived, entered, taken) each. times: in the order of STAMPS."""
    made = []
    for records, (arrived, entered, taken) in chunks:
        chunk = chunk_of([b"x"] * records, partition=Partition(source, "a"), arrived_at=arrived)
        chunk.entered_at, chunk.taken_at = entered, taken
        made.append(chunk)
    stamps = Stamps(opened=made[0].taken_at, closed=times[0])
    for name, time in zip(STAMPS, times, strict=True):
        setattr(stamps, name, time)
    return Batch(sequence, made, sum(c.count for c in made), sum(c.size for c in made), "size", stamps)


def outcome_of(
    batch: Batch, *, rejects: Sequence[tuple[int, Stage]] = (), filtered: int = 0, payload: bytes = b"scores"
) -> Outcome:
    """Return what became of a batch of one source. rejects: index and stage each."""
    source = batch.chunks[0].partition.source
    dead = [
        Reject(index, batch.chunks[0].partition, 0, stage, "wrong_type", "an error", b"x") for index, stage in rejects
    ]
    scored = batch.count - len(dead) - filtered
    return Outcome(payload, {source: scored}, dead, {source: filtered} if filtered else {})


seconds = st.floats(0, 100, allow_subnormal=False)


@st.composite
def batches(draw: st.DrawFn) -> Batch:
    """Any batch whose times never go back."""
    start = draw(st.floats(0, 1e6))
    times = list(accumulate(draw(st.lists(seconds, min_size=len(STAMPS), max_size=len(STAMPS))), initial=start))[1:]
    chunks = []
    for records in draw(st.lists(st.integers(1, 5), min_size=1, max_size=4)):
        shares = sorted(draw(st.lists(st.floats(0, 1), min_size=3, max_size=3)))
        chunks.append((records, [start + share * (times[0] - start) for share in shares]))
    return batch_of(chunks, times)


@st.composite
def scored_batches(draw: st.DrawFn) -> tuple[Batch, Outcome]:
    """Any batch with any share of its records rejected or filtered."""
    batch = draw(batches())
    dead = draw(st.lists(st.integers(0, batch.count - 1), unique=True, max_size=batch.count))
    filtered = draw(st.integers(0, batch.count - len(dead)))
    return batch, outcome_of(batch, rejects=[(index, "decode") for index in sorted(dead)], filtered=filtered)
