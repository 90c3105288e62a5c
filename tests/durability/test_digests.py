"""Digests beside the event loop: of each partition's records in their order, at every point exactly those before it."""

from hashlib import sha256
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streambatch.core.chunks import Chunk, Partition
from streambatch.durability import digests as module
from streambatch.durability.digests import Digests
from tests.chunks import chunk_of

pytestmark = pytest.mark.anyio
PARTITIONS = [Partition("in", "a"), Partition("in", "b")]


_PUT = st.tuples(st.sampled_from(PARTITIONS), st.lists(st.binary(min_size=1, max_size=9), min_size=1))


@given(st.lists(_PUT, max_size=9))
def test_each_partition_is_hashed_in_its_order_however_it_was_cut(
    puts: list[tuple[Partition, list[bytes]]],
) -> None:
    digests, wanted = Digests(), dict.fromkeys(PARTITIONS, b"")
    digests.start()
    for partition, lines in puts:
        lines = [line.replace(b"\n", b" ") for line in lines]
        rest = chunk_of(lines, partition=partition, base=len(wanted[partition]))
        wanted[partition] += rest.payload
        while rest.count > 1:
            head = rest.split_off(1)
            digests.add(head)
        digests.add(rest)
    point = digests.point()
    digests.close()
    assert point._reached.wait(10)
    assert point.digests == {each: sha256(data).hexdigest() for each, data in wanted.items() if data}


async def test_a_point_leaves_out_what_comes_after_it_and_what_did_not_change() -> None:
    digests = Digests()
    digests.start()
    digests.add(chunk_of([b"one"]))
    first = digests.point()
    digests.add(chunk_of([b"two"], base=4))
    second, third = digests.point(), digests.point()
    assert await first.reached() == {PARTITIONS[0]: sha256(b"one\n").hexdigest()}
    assert await second.reached() == {PARTITIONS[0]: sha256(b"one\ntwo\n").hexdigest()}
    assert await third.reached() == {}
    digests.close()


async def test_what_waits_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HELD_BYTES_MAX", 10)
    digests = Digests()
    digests.start()
    digests.add(chunk_of([b"more than ten bytes"]))
    await digests.settle()
    assert digests._hashed == digests._added
    digests.close()


async def test_nothing_is_missing_after_points_that_nobody_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HELD_BYTES_MAX", 1)
    digests = Digests()
    digests.start()
    digests.add(chunk_of([b"one"], partition=PARTITIONS[0]))
    digests.point()  # and whoever asked for it was cancelled
    digests.add(chunk_of([b"two"], partition=PARTITIONS[1]))
    await digests.settle()
    point = digests.point()
    wanted = {PARTITIONS[0]: sha256(b"one\n").hexdigest(), PARTITIONS[1]: sha256(b"two\n").hexdigest()}
    assert await digests.until(point) == wanted
    assert await digests.until(point) == {}
    digests.close()


async def test_a_failure_to_hash_fails_whoever_waits() -> None:
    class Unhashable(Chunk):
        def digest(self) -> Any:
            raise MemoryError("no digest")

    chunk = chunk_of([b"one"])
    digests = Digests()
    digests.start()
    digests.add(Unhashable(chunk.partition, chunk.payload, chunk.ends, chunk.base, 0.0))
    with pytest.raises(MemoryError):
        await digests.until(digests.point())
    digests.close()
