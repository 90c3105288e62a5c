"""A spool at work, without a source before it: whoever waits for room goes on at a stop, and what it has is stored."""

from pathlib import Path

import anyio
import pytest
from anyio.lowlevel import checkpoint

from streambatch.spool.blocks import block_of
from streambatch.spool.log import SpoolLog
from streambatch.spool.request import PendingRequest, SpoolRequest
from streambatch.testing.fakes import CollectingIntake
from tests.chunks import chunk_of
from tests.spool.spooling import DAY, NOW, stored_at

pytestmark = pytest.mark.anyio
MAX_BYTES = 1 << 20
RECORD = b"x" * (100 << 10)
"""As many as fit, and then as many as may wait to be written, are few."""


def log_in(folder: Path, intake: CollectingIntake) -> SpoolLog:
    return SpoolLog(
        "in",
        folder,
        max_bytes=MAX_BYTES,
        window=DAY,
        memory=intake.memory,
        clock=intake.clock,
        observer=intake.observer,
        received=intake.received,
        lost=intake.lost,
    )


def pending(intake: CollectingIntake) -> PendingRequest:
    chunk = chunk_of([RECORD])
    intake.memory.take(chunk.size)
    return PendingRequest(SpoolRequest([block_of(chunk, NOW)], None, None), [chunk], is_awaited=False)


async def test_whoever_waits_for_room_goes_on_in_a_hurry(tmp_path: Path) -> None:
    intake, count = CollectingIntake(), 40
    log = log_in(tmp_path, intake)
    await log.open(0, 0)
    appended = 0

    async def append() -> None:
        nonlocal appended
        for _ in range(count):
            await log.append(pending(intake))
            appended += 1
        log.stop()

    with anyio.fail_after(20):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(log.write)
            tasks.start_soon(append)
            while log.status.size < MAX_BYTES - 2 * len(RECORD) or log.space.has_room:
                await checkpoint()
            assert appended < count
            assert log.status.size <= MAX_BYTES
            log.hurry()
    await log.close()
    assert stored_at(tmp_path) == [RECORD] * count
    assert intake.counts["received"] == count
    assert intake.memory.used == 0
