"""A spool at work and started again: on a clock that was set, and for clients that have nothing to send."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

from streambatch.core.clock import Clock
from streambatch.spool.keys import hashed
from streambatch.spool.log import SpoolLog
from streambatch.spool.request import PendingRequest
from streambatch.testing.fakes import CollectingIntake
from tests.connectors.intakes import until
from tests.spool.spooling import DAY, NOW, request

pytestmark = [pytest.mark.anyio, pytest.mark.parametrize("anyio_backend", ["asyncio"])]
MAX_BYTES = 64 << 10


class Clocks:
    """Two clocks that stand still."""

    def __init__(self, *, monotonic: float, wall: float) -> None:
        self._monotonic, self._wall = monotonic, wall

    def monotonic(self) -> float:
        return self._monotonic

    def wall(self) -> float:
        return self._wall


@asynccontextmanager
async def at_work(folder: Path, clock: Clock, *, acked: int = 0) -> AsyncIterator[SpoolLog]:
    """Open a spool and have it write; stop it at the end."""
    intake = CollectingIntake(clock=clock)
    log = SpoolLog(
        "in", folder, max_bytes=MAX_BYTES, window=DAY, memory=intake.memory, clock=clock, observer=intake.observer,
        received=intake.received, lost=intake.lost,
    )  # fmt: skip
    with anyio.fail_after(30):
        await log.open(acked, acked)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(log.write)
            yield log
            log.stop()
        await log.close()


async def store(log: SpoolLog, *lines: bytes, key: str | None = None) -> None:
    """Store a request, and return once it is durable."""
    stored = request(*([lines] if lines else []), key=key)
    unit = PendingRequest(stored, [None] * len(stored.blocks), is_awaited=True)
    await log.append(unit)
    await unit.durable()


@pytest.mark.parametrize(("passed", "age"), [(-3600.0, 0.0), (0.0, 0.0), (60.0, 60.0)])
async def test_no_clock_that_was_set_back_makes_records_arrive_later_than_now(
    tmp_path: Path, passed: float, age: float
) -> None:
    """A batch waits for a time since its first arrival, and would wait for as long as the clock was set back."""
    async with at_work(tmp_path, Clocks(monotonic=50.0, wall=NOW)) as log:
        await store(log, b"record")
    async with at_work(tmp_path, Clocks(monotonic=7000.0, wall=NOW + passed)) as log:
        chunk = await log.next()
    assert (bytes(chunk.data()), chunk.arrived_at) == (b"record\n", 7000.0 - age)


async def test_requests_with_nothing_but_a_key_fill_no_spool(tmp_path: Path) -> None:
    """Nobody acks them: there is no record. They make room like others, and their keys stay known."""
    clock = Clocks(monotonic=50.0, wall=NOW)
    async with at_work(tmp_path, clock) as log:
        await store(log, b"first", key="first")
        acked = (await log.next()).position
        log.acked(acked)
        for at in range(800):
            await store(log, key=f"a-{at}")
            assert log.space.used < MAX_BYTES
    async with at_work(tmp_path, clock, acked=acked) as log:
        for at in range(800):
            await store(log, key=f"b-{at}")
            assert log.space.has_room
        await store(log, b"second", key="second")
        assert bytes((await log.next()).data()) == b"second\n"
        keys = ["first", "second", *(f"{run}-{at}" for run in "ab" for at in range(800))]
        assert all(log.keys.find(hashed(key), clock.wall()) for key in keys)


async def test_a_spool_that_is_full_of_keys_has_room_once_the_records_before_them_are_acked(tmp_path: Path) -> None:
    clock = Clocks(monotonic=50.0, wall=NOW)
    async with at_work(tmp_path, clock) as log:
        await store(log, b"record")
        chunk = await log.next()
        number = 0
        while log.space.has_room:
            await store(log, key=f"key-{number}")
            number += 1
        assert log.end == chunk.position
        log.acked(chunk.position)
        await until(lambda: log.space.has_room)
    async with at_work(tmp_path, clock, acked=chunk.position) as log:
        assert all(log.keys.find(hashed(f"key-{at}"), NOW) for at in range(number))
        await store(log, b"more")
        assert bytes((await log.next()).data()) == b"more\n"
