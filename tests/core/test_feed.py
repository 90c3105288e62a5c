"""Blocks in, chunks out, every byte accounted for, whatever comes between."""

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streambatch.codecs.formats import framing_for_format
from streambatch.core.chunks import Chunk, Partition
from streambatch.core.feed import Feed
from tests.connectors.intakes import KeepingIntake, ManualClock

pytestmark = pytest.mark.anyio


class OwningIntake(KeepingIntake):
    """Keeps the bytes of chunks, as a pipeline does until a batch is written; may refuse from some chunk on."""

    def __init__(self, memory: int = 1 << 20, refuse_after: int | None = None) -> None:
        super().__init__(memory)
        self.refuse_after = refuse_after

    async def put(self, chunk: Chunk) -> None:
        if self.refuse_after is not None and len(self.chunks) >= self.refuse_after:
            self.memory.give(chunk.size)
            raise GivenUp
        self.memory.take(chunk.size)
        await super().put(chunk)

    @property
    def owned(self) -> int:
        return sum(chunk.size for chunk in self.chunks)


class GivenUp(Exception):
    pass


def feed_into(intake: KeepingIntake, *, max_record_bytes: int = 100) -> Feed:
    framer = framing_for_format("jsonl").framer(Partition("in", "a"), max_record_bytes=max_record_bytes)
    return Feed(intake, framer, "in")


@given(st.lists(st.tuples(st.integers(0, 400), st.lists(st.sampled_from([b"12345", b"\n", b"\r\n", b"x" * 90])))))
def test_what_is_taken_is_what_is_reserved_pending_or_owned(steps: list[tuple[int, list[bytes]]]) -> None:
    async def run() -> None:
        intake = OwningIntake()
        feed = feed_into(intake)
        for spare, pieces in steps:
            block = b"".join(pieces)
            await feed.room(len(block) + spare)
            assert intake.budget.used >= len(block) + spare + intake.owned
            await feed.push(block)
            assert intake.budget.used == feed.pending + intake.owned
        await feed.end()
        assert intake.budget.used == intake.owned
        feed.release()
        assert intake.budget.used == intake.owned

    anyio.run(run)


async def test_room_left_over_counts_for_the_next_read() -> None:
    intake = OwningIntake()
    feed = feed_into(intake)
    await feed.room(300)
    await feed.room(500)
    assert intake.budget.used == 500
    await feed.push(b"")
    assert intake.budget.used == 0


async def test_a_wait_for_room_is_told_to_the_observer() -> None:
    intake = OwningIntake(memory=1000)
    clock = intake.clock = ManualClock()
    feed = feed_into(intake)
    intake.memory.take(900)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(feed.room, 200)
        await anyio.wait_all_tasks_blocked()
        clock.now += 3
        intake.memory.give(900)
    assert intake.seen.blocked == 3
    feed.release()
    assert intake.budget.used == 0


async def test_room_at_once_is_no_wait() -> None:
    intake = OwningIntake()
    feed = feed_into(intake)
    await feed.room(200)
    assert intake.seen.blocked == 0
    feed.release()


async def test_a_cancelled_wait_for_room_takes_nothing() -> None:
    intake = OwningIntake(memory=1000)
    feed = feed_into(intake)
    intake.memory.take(900)
    with anyio.CancelScope() as scope:
        scope.cancel()
        await feed.room(200)
    feed.release()
    assert intake.budget.used == 900


async def test_all_chunks_of_a_block_are_put_though_cancelled_between_them() -> None:
    intake = OwningIntake()
    feed = feed_into(intake)
    block = b"1\n" + b"x" * 200 + b"\n2\n" + b"y" * 200 + b"\n3\nrest"
    intake.stall()
    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(feed.push, block)
            await intake.is_waited_for()
            scope.cancel()
            tasks.start_soon(_go_on_shielded, intake)
    assert intake.records() == [b"1\n", b"2\n", b"3\n"]
    assert [reason for reason, _ in intake.faults()] == ["oversize", "oversize"]
    feed.release()
    assert intake.budget.used == intake.owned


async def _go_on_shielded(intake: KeepingIntake) -> None:
    with anyio.CancelScope(shield=True):
        await anyio.wait_all_tasks_blocked()
        intake.go_on()


async def test_when_the_pipeline_gives_up_what_was_not_put_is_given_back() -> None:
    intake = OwningIntake(refuse_after=1)
    feed = feed_into(intake)
    with pytest.raises(GivenUp):
        await feed.push(b"1\n" + b"x" * 200 + b"\n2\n" + b"y" * 200 + b"\n3\nrest")
    assert intake.records() == [b"1\n"]
    feed.release()
    assert intake.budget.used == intake.owned


async def test_a_framer_that_holds_something_already_is_accounted_for() -> None:
    intake = OwningIntake()
    framer = framing_for_format("jsonl").framer(Partition("in", "a"), max_record_bytes=100)
    framer.feed(b"half a rec", 0.0)
    feed = Feed(intake, framer, "in")
    assert intake.budget.used == feed.pending == 10
    await feed.push(b"ord\n")
    assert intake.records() == [b"half a record\n"]
    assert intake.budget.used == intake.owned
