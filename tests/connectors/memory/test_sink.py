"""The sink that keeps scores in memory."""

import pytest

from streambatch.connectors.memory.sink import MemorySink


@pytest.mark.anyio
async def test_it_keeps_header_and_payloads_in_order() -> None:
    sink = MemorySink(format="csv")
    await sink.open(b"id,score\n")
    await sink.write(b"1,2\n")
    await sink.write(b"3,4\n5,6\n")
    assert await sink.sync() == 21
    await sink.close()
    assert sink.payloads == [b"1,2\n", b"3,4\n5,6\n"]
    assert sink.data() == b"id,score\n1,2\n3,4\n5,6\n"
    assert (sink.name, sink.format) == ("memory", "csv")
