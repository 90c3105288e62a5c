"""The window: nothing lost or reordered, bounds kept, deadline kept, never an empty batch."""

from math import inf
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streambatch.microbatch.window import BatchPolicy, Window
from tests.chunks import chunk_of


def window(**policy: Any) -> Window:
    return Window(BatchPolicy(**policy))


def test_is_due_max_wait_after_the_first_arrival_however_steadily_others_come() -> None:
    open_batch = window(max_wait=0.05)
    for tick in range(5):
        open_batch.add(chunk_of([b"x"], arrived_at=tick * 0.01), tick * 0.01)
        assert open_batch.due(tick * 0.01) is None
    assert open_batch.deadline == 0.05
    assert open_batch.due(0.0499) is None
    assert open_batch.due(0.05) == "time"


def test_deadline_follows_the_oldest_record_whatever_lane_it_came_from() -> None:
    open_batch = window(max_wait=1)
    open_batch.add(chunk_of([b"x"], arrived_at=10), 10)
    open_batch.add(chunk_of([b"x"], arrived_at=9.5), 10)
    assert open_batch.deadline == 10.5


def test_closes_by_size_before_time() -> None:
    open_batch = window(max_records=2, max_wait=0)
    open_batch.add(chunk_of([b"x", b"y"]), 5)
    assert open_batch.due(5) == "size"


def test_closes_by_bytes_when_full_and_when_the_next_record_does_not_fit() -> None:
    open_batch = window(max_bytes=4)
    open_batch.add(chunk_of([b"x"]), 0)
    assert open_batch.due(0) is None
    open_batch.overflow()
    assert open_batch.due(0) == "bytes"
    open_batch.close("bytes", 0)
    open_batch.add(chunk_of([b"xyz"]), 0)
    assert open_batch.due(0) == "bytes"


def test_an_empty_batch_is_never_emitted() -> None:
    open_batch = window()
    assert open_batch.deadline == inf
    assert open_batch.due(1e9) is None
    with pytest.raises(ValueError, match="empty"):
        open_batch.close("time", 0)


@given(st.lists(st.integers(1, 9), min_size=1), st.integers(1, 20))
def test_batches_count_up_and_keep_every_chunk(counts: list[int], every: int) -> None:
    open_batch = window(max_records=10**6)
    batches = []
    for at, count in enumerate(counts, 1):
        open_batch.add(chunk_of([b"x"] * count), at)
        if at % every == 0:
            batches.append(open_batch.close("time", at))
    if not open_batch.is_empty:
        batches.append(open_batch.close("flush", len(counts)))
    assert [batch.sequence for batch in batches] == list(range(len(batches)))
    assert [chunk.count for batch in batches for chunk in batch.chunks] == counts
    assert sum(batch.count for batch in batches) == sum(counts)
    assert all(batch.size == sum(chunk.size for chunk in batch.chunks) for batch in batches)
