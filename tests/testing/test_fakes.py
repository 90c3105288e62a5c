"""The intake, memory and observer that suites and other people's tests use."""

import subprocess
import sys

import anyio
import pytest

from streambatch.core.clock import Clock
from streambatch.testing import CollectingIntake, CountingMemory, LoopClock, RecordingObserver
from tests.chunks import chunk_of, lines_of

pytestmark = pytest.mark.anyio


def test_it_is_imported_without_pytest() -> None:
    code = "import sys, streambatch.testing; assert not {'pytest', 'trio', '_pytest'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)


async def test_memory_keeps_the_most_and_the_least() -> None:
    memory = CountingMemory(100)
    await memory.reserve(60)
    memory.take(70)
    memory.give(140)
    assert (memory.used, memory.peak, memory.lowest) == (-10, 130, -10)


async def test_an_intake_collects_and_gives_the_bytes_back() -> None:
    intake = CollectingIntake()
    for lines in ([b"a", b"b"], [b"c"]):
        chunk = chunk_of(lines)
        intake.memory.take(chunk.size)
        await intake.put(chunk)
    assert lines_of(intake.chunks) == [b"a", b"b", b"c"]
    assert (intake.count, intake.size, intake.memory.used, intake.memory.peak) == (3, 6, 0, 4)
    intake.refused(5, "full")
    assert intake.refusals == {"full": 5}


@pytest.mark.virtual_time
async def test_a_stalled_intake_holds_whoever_puts() -> None:
    intake = CollectingIntake(clock=LoopClock())
    intake.stall()
    intake.memory.take(4)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(intake.put, chunk_of([b"a"]))
        tasks.start_soon(intake.put, chunk_of([b"b"]))
        await intake.is_waited_for()
        await anyio.sleep(3600)
        assert (intake.waiting, intake.count, intake.memory.used, intake.has_room) == (2, 2, 4, False)
        intake.go_on()
    assert (intake.waiting, intake.memory.used, intake.has_room) == (0, 0, True)


async def test_a_chunk_is_received_from_the_call_on_also_when_put_is_cancelled() -> None:
    intake = CollectingIntake()
    intake.stall()
    intake.memory.take(2)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(intake.put, chunk_of([b"a"]))
        await intake.is_waited_for()
        tasks.cancel_scope.cancel()
    assert (intake.count, intake.waiting, intake.memory.used) == (1, 0, 0)


async def test_a_pipeline_that_gives_up() -> None:
    intake = CollectingIntake()
    intake.failure = RuntimeError("no more")
    intake.memory.take(2)
    with pytest.raises(RuntimeError, match="no more"):
        await intake.put(chunk_of([b"a"]))
    assert intake.memory.used == 0


async def test_holds_waits_for_records() -> None:
    intake = CollectingIntake()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(intake.holds, 2)
        for line in (b"a", b"b"):
            await anyio.lowlevel.checkpoint()
            await intake.put(chunk_of([line]))


def test_an_observer_records_what_it_is_told() -> None:
    observer = RecordingObserver()
    observer.source_blocked("in", 0.5)
    observer.synced(0.25, ok=True)
    observer.connection_opened("in")
    assert [told.event for told in observer.events] == ["source_blocked", "synced", "connection_opened"]
    assert observer.named("synced") == [{"seconds": 0.25, "ok": True}]
    assert observer.named("state_changed") == []


@pytest.mark.virtual_time
async def test_a_clock_shows_the_loops_time() -> None:
    clock: Clock = LoopClock(wall=5.0)
    before = clock.monotonic()
    await anyio.sleep(3600)
    assert clock.monotonic() - before == pytest.approx(3600)
    assert clock.wall() == pytest.approx(clock.monotonic() + 5.0)
