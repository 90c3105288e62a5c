"""The sink that keeps nothing but a count."""

import dataclasses

import pytest

from streambatch.connectors.memory.none import NoneSink


@pytest.mark.anyio
async def test_it_counts_bytes_from_open_to_open() -> None:
    sink = NoneSink()
    for _ in range(2):
        await sink.open(b"id,score\n")
        await sink.write(b"1,2\n")
        await sink.write(b"")
        assert await sink.sync() == sink.length == 13
        await sink.close()


def test_two_of_them_count_apart() -> None:
    sink = dataclasses.replace(NoneSink(), name="nothing")
    assert (sink.name, sink.format, sink.length) == ("nothing", "jsonl", 0)
