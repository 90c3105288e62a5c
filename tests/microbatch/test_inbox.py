"""The inbox: bounded in records and bytes, in order within a lane, fair between lanes, nothing lost."""

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streambatch.core.chunks import Chunk, Partition
from streambatch.core.clock import SystemClock
from streambatch.microbatch.inbox import Inbox, InboxAborted, QueueLimits
from tests.blocking import all_blocked
from tests.chunks import chunk_of, lines_of

pytestmark = pytest.mark.anyio
CLOCK = SystemClock()


async def drain(inbox: Inbox, records: int = 7, size: int = 10**9) -> list[Chunk]:
    taken = []
    while (chunk := inbox.take(records, size, whole_record=True)) is not None:
        assert 0 < chunk.count <= records
        taken.append(chunk)
        await anyio.lowlevel.checkpoint()
    return taken


@given(
    lanes=st.lists(st.lists(st.integers(1, 12), max_size=8), min_size=1, max_size=3),
    max_records=st.integers(1, 20),
    max_bytes=st.integers(1, 60),
    take=st.integers(1, 9),
)
def test_holds_its_bounds_and_loses_doubles_and_reorders_nothing(
    lanes: list[list[int]], max_records: int, max_bytes: int, take: int
) -> None:
    async def scenario() -> None:
        inbox = Inbox(QueueLimits(max_records=max_records, max_bytes=max_bytes))
        came: dict[str, list[bytes]] = {}

        async def bring(name: str, counts: list[int]) -> None:
            number = 0
            for count in counts:
                lines = [b"%s%d" % (name.encode(), number + i) for i in range(count)]
                number += count
                await inbox.put(chunk_of(lines, partition=Partition(name, "p")), CLOCK)

        async def fetch() -> None:
            wanted = sum(map(sum, lanes))
            while wanted:
                assert inbox.records <= max_records
                assert inbox.size <= max_bytes or inbox.records == 1
                chunk = inbox.take(take, 10**9, whole_record=True)
                if chunk is None:
                    await anyio.lowlevel.checkpoint()
                    continue
                came.setdefault(chunk.partition.source, []).extend(lines_of([chunk]))
                wanted -= chunk.count

        with anyio.fail_after(5):
            async with anyio.create_task_group() as tasks:
                for at, counts in enumerate(lanes):
                    tasks.start_soon(bring, f"s{at}", counts)
                tasks.start_soon(fetch)
        assert (inbox.records, inbox.size) == (0, 0)
        for name, lines in came.items():
            assert lines == [b"%s%d" % (name.encode(), i) for i in range(len(lines))]

    anyio.run(scenario, backend="trio")


async def test_a_loud_lane_leaves_a_quiet_one_its_turn() -> None:
    inbox = Inbox(QueueLimits())
    for _ in range(100):
        await inbox.put(chunk_of([b"x" * 1023] * 100, partition=Partition("loud", "p")), CLOCK)
    await inbox.put(chunk_of([b"quiet"], partition=Partition("quiet", "p")), CLOCK)
    before_quiet = 0
    while (chunk := inbox.take(512, 1 << 20, whole_record=True)) is not None:
        if chunk.partition.source == "quiet":
            break
        before_quiet += chunk.size
    assert before_quiet <= 2 * 64 * 1024


async def test_lanes_share_by_bytes_and_not_by_records() -> None:
    inbox = Inbox(QueueLimits(max_records=10**6))
    for name, width in (("wide", 999), ("narrow", 99)):
        await inbox.put(chunk_of([b"x" * width] * (4_000_000 // (width + 1)), partition=Partition(name, "p")), CLOCK)
    sizes = {"wide": 0, "narrow": 0}
    for _ in range(40):
        chunk = inbox.take(512, 1 << 20, whole_record=True)
        assert chunk is not None
        sizes[chunk.partition.source] += chunk.size
    assert abs(sizes["wide"] - sizes["narrow"]) <= 2 * 64 * 1024


async def test_waiters_of_many_tasks_on_one_lane_do_not_shut_out_another_lane() -> None:
    inbox = Inbox(QueueLimits(max_records=4))
    order: list[str] = []

    async def bring(name: str) -> None:
        await inbox.put(chunk_of([b"x"] * 4, partition=Partition(name, "p")), CLOCK)
        order.append(name)

    async with anyio.create_task_group() as tasks:
        for _ in range(20):
            tasks.start_soon(bring, "loud")
        await all_blocked()
        tasks.start_soon(bring, "quiet")
        await all_blocked()
        while len(order) < 21:
            await drain(inbox)
            await all_blocked()
    assert order.index("quiet") <= 3


async def test_a_cancelled_put_leaves_the_line_in_order() -> None:
    inbox = Inbox(QueueLimits(max_records=1))
    await inbox.put(chunk_of([b"first"]), CLOCK)
    async with anyio.create_task_group() as tasks:
        with anyio.CancelScope() as scope:
            scope.cancel()
            await inbox.put(chunk_of([b"cancelled"]), CLOCK)
        tasks.start_soon(inbox.put, chunk_of([b"second"]), CLOCK)
        await all_blocked()
        first = await drain(inbox)
        await all_blocked()
        second = await drain(inbox)
    assert lines_of(first + second) == [b"first", b"second"]


async def test_abort_fails_every_put() -> None:
    inbox = Inbox(QueueLimits(max_records=1))
    await inbox.put(chunk_of([b"x"]), CLOCK)
    failed = []

    async def bring() -> None:
        with pytest.raises(InboxAborted):
            await inbox.put(chunk_of([b"y"]), CLOCK)
        failed.append(True)

    async with anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(bring)
        await all_blocked()
        inbox.abort()
    assert len(failed) == 3


async def test_one_record_larger_than_the_bound_goes_alone() -> None:
    inbox = Inbox(QueueLimits(max_bytes=10))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(inbox.put, chunk_of([b"x" * 50, b"y", b"z" * 50]), CLOCK)
        await all_blocked()
        assert inbox.records == 1
        assert inbox.take(5, 10, whole_record=False) is None
        taken = []
        for _ in range(3):
            chunk = inbox.take(5, 10, whole_record=True)
            assert chunk is not None
            taken += lines_of([chunk])
            await all_blocked()
    assert taken == [b"x" * 50, b"y", b"z" * 50]


async def test_a_loud_lane_leaves_room_for_a_quiet_one() -> None:
    inbox = Inbox(QueueLimits(max_records=160))
    async with anyio.create_task_group() as tasks:
        for _ in range(20):
            tasks.start_soon(inbox.put, chunk_of([b"x"] * 20, partition=Partition("loud", "p")), CLOCK)
        await all_blocked()
        assert inbox.records == 160
        tasks.start_soon(inbox.put, chunk_of([b"y"], partition=Partition("quiet", "p")), CLOCK)
        await all_blocked()
        inbox.take(20, 1000, whole_record=True)
        await all_blocked()
        assert inbox.records == 140 + 1
        assert inbox.is_full_for("loud")
        assert not inbox.is_full_for("quiet")
        with anyio.fail_after(1):
            await inbox.put(chunk_of([b"y"] * 9, partition=Partition("quiet", "p")), CLOCK)
        while inbox.records:
            inbox.take(20, 1000, whole_record=True)
            await all_blocked()


async def test_a_lane_known_from_the_start_has_room_in_a_queue_that_others_filled() -> None:
    inbox = Inbox(QueueLimits(max_records=160), ["loud", "middling", "quiet"])
    async with anyio.create_task_group() as tasks:
        for name in ("loud", "middling"):
            for _ in range(20):
                tasks.start_soon(inbox.put, chunk_of([b"x"] * 20, partition=Partition(name, "p")), CLOCK)
            await all_blocked()
        with anyio.fail_after(1):
            await inbox.put(chunk_of([b"y"] * (160 // 12), partition=Partition("quiet", "p")), CLOCK)
        assert inbox.records == 160
        while inbox.records:
            inbox.take(20, 1000, whole_record=True)
            await all_blocked()


async def test_a_record_larger_than_what_is_kept_for_its_lane_still_gets_in() -> None:
    inbox = Inbox(QueueLimits(max_bytes=1000), ["loud", "quiet"])
    got_in = anyio.Event()

    async def shout() -> None:
        while not got_in.is_set():
            await inbox.put(chunk_of([b"x" * 99], partition=Partition("loud", "p")), CLOCK)

    async def speak() -> None:
        await inbox.put(chunk_of([b"y" * 900], partition=Partition("quiet", "p")), CLOCK)
        got_in.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(shout)
        await all_blocked()
        tasks.start_soon(speak)
        await all_blocked()
        taken = 0
        while not got_in.is_set():
            assert inbox.take(1, 1000, whole_record=True) is not None
            taken += 1
            assert taken <= 10
            await all_blocked()
        await drain(inbox)


@given(
    held=st.lists(st.lists(st.integers(1, 40), max_size=5), min_size=1, max_size=5),
    records=st.integers(1, 50),
    width=st.integers(1, 40),
)
def test_what_holds_no_more_than_its_share_goes_into_the_next_batch_and_the_others_get_theirs(
    held: list[list[int]], records: int, width: int
) -> None:
    async def scenario() -> None:
        inbox, size = Inbox(QueueLimits()), 10 * records
        for at, counts in enumerate(held):
            for count in counts:
                await inbox.put(chunk_of([b"x" * (width - 1)] * count, partition=Partition(f"s{at}", "p")), CLOCK)
        totals = {f"s{at}": sum(counts) for at, counts in enumerate(held) if counts}
        records_left, bytes_left = records, size
        came = dict.fromkeys(totals, 0)
        while records_left and (chunk := inbox.take(records_left, bytes_left, whole_record=records_left == records)):
            came[chunk.partition.source] += chunk.count
            records_left -= chunk.count
            bytes_left -= chunk.size
        share = min(records, size // width) // max(1, len(totals))
        for name, total in totals.items():
            if total <= share:
                assert came[name] == total
        heavy = [name for name, total in totals.items() if total > share]
        if heavy and share:
            assert sum(came[name] for name in heavy) >= share

    anyio.run(scenario, backend="trio")


def test_a_full_queue_leaves_memory_to_those_who_read() -> None:
    assert QueueLimits(max_bytes=1000).within(300) == QueueLimits(max_bytes=300)
    assert QueueLimits(max_bytes=100).within(300) == QueueLimits(max_bytes=100)
