"""The sink that keeps scores in memory."""

import pytest

from streambatch.connectors.memory.sink import MemorySink
from streambatch.core.parts import Site


@pytest.mark.anyio
async def test_it_keeps_header_and_payloads_in_order() -> None:
    sink = MemorySink(format="csv")
    writer = sink.build(Site())
    await writer.open(b"id,score\n")
    await writer.write(b"1,2\n")
    await writer.write(b"3,4\n5,6\n")
    assert await writer.sync() == 21
    await writer.close()
    assert sink.payloads == [b"1,2\n", b"3,4\n5,6\n"]
    assert sink.data() == b"id,score\n1,2\n3,4\n5,6\n"
    assert (sink.name, sink.format) == ("memory", "csv")


@pytest.mark.anyio
async def test_what_a_second_run_writes_comes_after_the_first() -> None:
    sink = MemorySink(format="csv")
    for row in (b"1,2\n", b"3,4\n"):
        writer = sink.build(Site())
        await writer.open(b"id,score\n")
        await writer.write(row)
        await writer.close()
    assert sink.data() == b"id,score\n1,2\n3,4\n"
