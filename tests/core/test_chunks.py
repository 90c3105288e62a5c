"""Chunks split and join without losing, doubling or copying records."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streambatch.core.batches import Batch, Stamps
from streambatch.core.chunks import Chunk, Partition
from tests.chunks import chunk_of, lines_of

LINES = st.lists(st.binary(max_size=6).map(lambda raw: raw.replace(b"\n", b"x")), min_size=1, max_size=30)


@given(lines=LINES, cuts=st.lists(st.integers(1, 5), max_size=30), base=st.integers(0, 10**12))
def test_split_keeps_records_sizes_and_positions(lines: list[bytes], cuts: list[int], base: int) -> None:
    whole = chunk_of(lines, base=base)
    parts: list[Chunk] = []
    rest = chunk_of(lines, base=base)
    for cut in cuts:
        if cut >= rest.count:
            break
        parts.append(rest.split_off(cut))
    parts.append(rest)

    assert lines_of(parts) == lines
    assert sum(part.size for part in parts) == whole.size == len(whole.payload)
    assert b"".join(bytes(part.data()) for part in parts) == whole.payload
    assert parts[-1].position == whole.position == base + len(whole.payload)
    assert all(part.payload is rest.payload for part in parts)
    positions = [part.position_of(i) for part in parts for i in range(part.count)]
    assert positions == [whole.position_of(i) for i in range(whole.count)]


@given(lines=LINES, records=st.integers(0, 40), size=st.integers(0, 200))
def test_fitting_is_the_longest_prefix_within_both_bounds(lines: list[bytes], records: int, size: int) -> None:
    chunk = chunk_of(lines)
    count = chunk.fitting(records, size)
    sizes = np.cumsum([len(line) + 1 for line in lines])
    assert count == min(records, int((sizes <= size).sum()))


@pytest.mark.parametrize("count", [0, 2, 3])
def test_split_refuses_an_empty_part(count: int) -> None:
    with pytest.raises(ValueError, match="can't be split"):
        chunk_of([b"a", b"b"]).split_off(count)


def test_batch_locates_a_record_across_chunks() -> None:
    first, second = chunk_of([b"a", b"b"]), chunk_of([b"c"], partition=Partition("in", "b"))
    batch = Batch(0, [first, second], 3, 6, "size", Stamps(0, 0))
    assert batch.locate(1) == (first, 1)
    assert batch.locate(2) == (second, 0)
    with pytest.raises(IndexError, match="no record 3"):
        batch.locate(3)
