"""A whole pipeline, run where time takes no time."""

from collections.abc import AsyncIterator

import anyio

import streambatch as sb
from streambatch.testing import LoopClock, run_in_virtual_time


async def a_record_an_hour() -> AsyncIterator[bytes]:
    for number in range(6):
        yield b'{"id": %d, "x": [1]}\n' % number
        await anyio.sleep(3600)


async def run() -> sb.RunReport:
    return await sb.Pipeline(
        sources=[sb.MemorySource(a_record_an_hour())],
        record=sb.RecordSchema(id="id", features="x", shape=(1,)),
        batch=sb.BatchPolicy(max_wait=60),
        model=sb.LinearModel([1.0]),
        workers=sb.Workers(executor="inline"),
        sink=sb.MemorySink(),
        clock=LoopClock(),
    ).run()


def test_hours_pass_at_once() -> None:
    report = run_in_virtual_time(run)
    assert 6 * 3600 <= report.seconds < 6 * 3600 + 120
    assert report.batches["time"] == 6
    assert 60 <= report.latency_seconds["max"] < 61
