"""Chunks of table rows: counted, placed and parted like chunks of bytes, without copying a row."""

import json
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streambatch.codecs.table.chunk import NoneFraming, TableChunk
from streambatch.core.chunks import Chunk
from tests.codecs.framed import MIB, PARTITION, chunks_in, told
from tests.codecs.table.tabling import table_chunks


def chunk_of(rows: int, base: int = 0) -> TableChunk:
    return TableChunk(
        PARTITION, pa.record_batch({"n": range(rows), "s": ["x" * (i % 7) for i in range(rows)]}), base, 1.0
    )


def numbers(chunk: Chunk) -> list[int]:
    data: Any = chunk.data()
    return data["n"].to_pylist()  # type: ignore[no-any-return]


@given(st.integers(1, 200), st.integers(0, 1000), st.lists(st.tuples(st.integers(0, 60), st.integers(-1, 900))))
def test_parts_hold_every_row_once_and_their_sizes_add_up(rows: int, base: int, wishes: list[tuple[int, int]]) -> None:
    chunk: Chunk = chunk_of(rows, base)
    whole, size = chunk.size, 0
    found: list[int] = []
    for records, size_max in wishes:
        count = chunk.fitting(records, size_max)
        assert 0 <= count <= min(records, chunk.count)
        if count == chunk.count:
            break
        if count == 0:
            continue
        head = chunk.split_off(count)
        assert isinstance(head, TableChunk)
        assert head.size <= size_max
        assert head.count == count
        assert head.position == base + len(found) + count == head.position_of(count - 1)
        found += numbers(head)
        size += head.size
    assert found + numbers(chunk) == list(range(rows))
    assert size + chunk.size == whole
    assert chunk.position == base + rows == chunk.position_of(chunk.count - 1)


def test_one_more_row_would_not_have_fit() -> None:
    chunk = chunk_of(100)
    for size in range(chunk.size):
        count = chunk.fitting(100, size)
        if count < 99:
            assert chunk_of(100).split_off(count + 1).size > size


def test_a_row_is_told_as_json() -> None:
    batch = pa.record_batch([pa.array([1, 2]), pa.array([[0.5], None]), pa.array([3, 4])], names=["b", "a", "b"])
    (chunk,) = table_chunks(batch)
    assert bytes(chunk.raw(0)) == b'{"b":1,"a":[0.5]}'
    chunk.split_off(1)
    assert json.loads(bytes(chunk.raw(0))) == {"b": 2, "a": None}


def test_rows_without_bytes_count_as_one_each() -> None:
    chunk = TableChunk(PARTITION, pa.record_batch({"n": pa.nulls(5)}), 0, 1.0)
    assert chunk.size == 5
    assert chunk.fitting(9, 3) == 3


def test_what_was_let_go_still_knows_where_it_ended() -> None:
    chunk = chunk_of(3, base=4)
    chunk.payload, chunk.ends = b"", chunk.ends
    assert (chunk.count, chunk.position) == (3, 7)


@pytest.mark.parametrize("size_max", [MIB, 3])
def test_without_framing_a_block_is_a_record(size_max: int) -> None:
    chunks = chunks_in("none", [b"one", b"", b"a\nb", b"four"], max_record_bytes=size_max)
    records = told("none", chunks)
    assert [(record.record, record.position) for record in records] == [(b"one", 3), (b"a\nb", 6), (b"four", 10)]
    assert [record.fault.reason for record in records if record.fault] == (["oversize"] if size_max == 3 else [])
    assert NoneFraming().strip(memoryview(b" x\n")) == b" x\n"
