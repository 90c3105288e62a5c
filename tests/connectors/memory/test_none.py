"""The sink that keeps nothing but a count."""

import dataclasses

import pytest

from streambatch.connectors.memory.none import NoneSink
from streambatch.core.parts import Site


@pytest.mark.anyio
async def test_it_counts_bytes_from_open_to_open() -> None:
    writer = NoneSink().build(Site())
    for _ in range(2):
        await writer.open(b"id,score\n")
        await writer.write(b"1,2\n")
        await writer.write(b"")
        assert await writer.sync() == 13
        await writer.close()


@pytest.mark.anyio
async def test_two_of_them_count_apart() -> None:
    sink = dataclasses.replace(NoneSink(), name="nothing")
    assert (sink.name, sink.format) == ("nothing", "jsonl")
    first, second = sink.build(Site()), sink.build(Site())
    await first.write(b"1,2\n")
    assert (await first.sync(), await second.sync()) == (4, 0)
