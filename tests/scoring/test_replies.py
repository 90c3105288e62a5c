"""Answers to a batch's records: each in its place, whichever were scored, died or were left out."""

from __future__ import annotations

import json

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from streambatch.core.batches import Batch, Stamps
from streambatch.core.chunks import Chunk, Partition
from streambatch.core.outcomes import Reject
from streambatch.scoring.replies import filtered_line, reject_line, replies_of


@given(st.lists(st.tuples(st.booleans(), st.lists(st.booleans(), min_size=1, max_size=8)), min_size=1, max_size=6))
def test_every_record_has_its_line_in_its_place(chunks: list[tuple[bool, list[bool]]]) -> None:
    """chunks: whether each waits for answers, and which of its records were scored."""
    scored = np.array([is_scored for _, records in chunks for is_scored in records])
    lines = [b"score %d\n" % place if is_scored else b"error %d\n" % place for place, is_scored in enumerate(scored)]
    places = np.flatnonzero(scored)
    others = {place: lines[place] for place in np.flatnonzero(~scored).tolist()}
    found = replies_of(batch_of(chunks), b"".join(lines[place] for place in places), places, others)
    start = 0
    for (waits, records), reply in zip(chunks, found, strict=True):
        stop = start + len(records)
        assert reply == (b"".join(lines[start:stop]) if waits else b"")
        start = stop


def batch_of(chunks: list[tuple[bool, list[bool]]]) -> Batch:
    made = []
    for waits, records in chunks:
        ends = np.arange(1, len(records) + 1, dtype=np.int64)
        made.append(Chunk(Partition("s", "p"), b"x" * len(records), ends, 0, 0.0, origin=object() if waits else None))
    count = sum(chunk.count for chunk in made)
    return Batch(0, made, count, count, "size", Stamps(0.0, 0.0))


def test_errors_are_told_on_one_line() -> None:
    reject = Reject(0, Partition("s", "p"), 4, "decode", "invalid_json", 'no "JSON"\nat all', b"x\n")
    line = reject_line(reject)
    assert line.count(b"\n") == 1
    error = {"stage": "decode", "reason": "invalid_json", "message": 'no "JSON"\nat all'}
    assert json.loads(line) == {"id": None, "error": error}
    assert json.loads(filtered_line("a"))["error"]["reason"] == "filtered"
