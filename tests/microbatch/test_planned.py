"""Batches that are cut again: the same ones from the same records, however these come, and nothing lost beside them."""

from __future__ import annotations

import random
from collections import defaultdict, deque
from collections.abc import Collection
from typing import NamedTuple

import pytest
import trio
import trio.lowlevel
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from streambatch.core.batches import Batch
from streambatch.core.chunks import Chunk, Partition
from streambatch.microbatch.batcher import Batcher
from streambatch.microbatch.inbox import Inbox, QueueLimits
from streambatch.microbatch.planned import PlannedBatch, PlannedBatches
from streambatch.microbatch.planned_cutter import PLAN_PATIENCE_SECONDS, PlannedCutter
from streambatch.microbatch.window import BatchPolicy, Window
from streambatch.testing import LoopClock
from tests.chunks import chunk_of, lines_of

PARTITIONS = (Partition("in", "a"), Partition("in", "b"), Partition("files", "c"))
LINE = 4
"""Bytes of a record, its newline included: record n of a partition ends at 4 * (n + 1)."""


class Range(NamedTuple):
    """As the journal has it."""

    source: str
    partition: str
    end: int
    records: int


def chunk(partition: Partition, first: int, count: int) -> Chunk:
    return chunk_of([b"%03d" % n for n in range(first, first + count)], partition=partition, base=first * LINE)


def planned(*ranges: tuple[Partition, int, int], id: str | None = None) -> PlannedBatch:
    """Return a batch of partition, first record and number of records."""
    parts = [Range(where.source, where.name, (first + count) * LINE, count) for where, first, count in ranges]
    return PlannedBatch(ranges=parts, id=id)


def records_of(chunks: list[Chunk]) -> list[tuple[str, int]]:
    """Return partition and number of each record."""
    found = []
    for each in chunks:
        found += [(each.partition.name, each.position_of(i) // LINE - 1) for i in range(each.count)]
        assert lines_of([each]) == [b"%03d" % n for _, n in found[len(found) - each.count :]]
    return found


@st.composite
def plans(draw: st.DrawFn) -> tuple[list[PlannedBatch], dict[Partition, int]]:
    """Return a plan, and how many records of each partition it holds."""
    counts = dict.fromkeys(PARTITIONS, 0)
    plan = []
    for number in range(draw(st.integers(0, 6))):
        ranges = []
        for where in draw(st.lists(st.sampled_from(PARTITIONS), min_size=1, max_size=4)):
            count = draw(st.integers(1, 5))
            ranges.append((where, counts[where], count))
            counts[where] += count
        plan.append(planned(*ranges, id=str(number)))
    return plan, counts


@st.composite
def inputs(draw: st.DrawFn, counts: dict[Partition, int]) -> list[Chunk]:
    """Return chunks of any size with at least so many records of each partition, in any order among partitions."""
    left = {}
    for where, count in counts.items():
        chunks, first = deque[Chunk](), 0
        end = count + draw(st.integers(0, 6))
        while first < end:
            size = draw(st.integers(1, min(7, end - first)))
            chunks.append(chunk(where, first, size))
            first += size
        if chunks:
            left[where] = chunks
    mixed = []
    while left:
        where = draw(st.sampled_from(sorted(left, key=str)))
        mixed.append(left[where].popleft())
        if not left[where]:
            del left[where]
    return mixed


def expected(planned_batch: PlannedBatch) -> list[tuple[str, int]]:
    return [
        (part.partition, n)
        for part in planned_batch.ranges
        for n in range(part.end // LINE - part.records, part.end // LINE)
    ]


def drained(planned_batches: PlannedBatches) -> list[tuple[str, int]]:
    chunks = []
    while (each := planned_batches.unplanned.take(3, 100, whole_record=True)) is not None:
        chunks.append(each)
    return records_of(chunks)


@given(st.data())
def test_planned_batches_come_out_as_they_were_and_the_rest_follows(data: st.DataObject) -> None:
    plan, counts = data.draw(plans())
    chunks = data.draw(inputs(counts))
    sent = [record for each in chunks for record in records_of([each])]
    again, batches = PlannedBatches(plan), []
    for each in chunks:
        again.add(each)
        while (found := again.next()) is not None:
            batches.append(found)
    assert [records_of(found) for found, _ in batches] == [expected(each) for each in plan]
    assert [known.id for _, known in batches] == [each.id for each in plan]
    assert again.is_used_up
    assert not again.awaited
    in_plan = {record for each in plan for record in expected(each)}
    assert (again.records, again.unplanned.records) == (len(sent) - len(in_plan),) * 2
    assert drained(again) == [record for record in sent if record not in in_plan]
    assert (again.records, again.size, again.unplanned.size, again.changed) == (0, 0, 0, 0)


@given(st.data())
def test_whatever_is_planned_and_given_up_nothing_is_lost_doubled_or_put_out_of_order(data: st.DataObject) -> None:
    plan, _ = data.draw(plans())
    chunks = data.draw(inputs(dict.fromkeys(PARTITIONS, 0)))
    sent = [record for each in chunks for record in records_of([each])]
    again, out = PlannedBatches(plan), []
    give_up_at = data.draw(st.integers(0, len(chunks)))
    for at, each in enumerate(chunks):
        if at == give_up_at:
            again.expect_no_more(*data.draw(st.sampled_from([("in",), ("files",), ("in", "a")])))
        again.add(each)
        while (found := again.next()) is not None:
            out += records_of(found[0])
            assert (found[1].id is not None) == (records_of(found[0]) in [expected(each) for each in plan])
    again.expect_no_more()
    while (found := again.next()) is not None:
        out += records_of(found[0])
    assert again.is_used_up
    out += drained(again)
    assert sorted(out) == sorted(sent)
    for where in PARTITIONS:
        assert [n for name, n in out if name == where.name] == sorted(n for name, n in sent if name == where.name)


@given(st.data())
def test_what_is_left_is_planned_as_it_was_and_behind_it_comes_only_what_would_be_lost(data: st.DataObject) -> None:
    plan, counts = data.draw(plans())
    chunks = data.draw(inputs({**counts, C: 0}))
    sent = [record for each in chunks for record in records_of([each])]
    again, out = PlannedBatches(plan, {"in"}), []
    again.expect_no_more("files")
    leave_at = data.draw(st.integers(0, len(chunks)))
    for at, each in enumerate(chunks):
        if at == leave_at and not again.is_used_up:
            again.postpone()
        again.add(each)
        while not again.postponed and (found := again.next()) is not None:
            out.append(found)
    for chunks_of, known in out:
        if known.id is not None:
            assert records_of(chunks_of) == expected(next(each for each in plan if each.id == known.id))
    rest = drained(again)
    if not again.postponed:
        return
    assert list(again.postponed) == plan[len(plan) - len(again.postponed) :]
    assert rest == [record for record in sent if record[0] == "c"]
    assert again.postponed_records == len(sent) - len(rest) - sum(len(records_of(found)) for found, _ in out)


def test_a_batch_that_lacks_records_or_has_others_loses_its_id() -> None:
    a, b, c = PARTITIONS
    again = PlannedBatches([planned((a, 2, 2), id="0"), planned((b, 0, 3), id="1"), planned((c, 0, 1), id="2")])
    again.add(chunk(a, 0, 4))
    found = again.next()
    assert found is not None
    assert (records_of(found[0]), found[1].id) == ([("a", 0), ("a", 1), ("a", 2), ("a", 3)], None)
    again.add(chunk(b, 1, 2))
    found = again.next()
    assert found is not None
    assert (records_of(found[0]), found[1].id) == ([("b", 1), ("b", 2)], None)
    again.expect_no_more("files")
    assert again.next() is None
    assert again.is_used_up
    assert again.changed == 3


class Bench:
    """An inbox, batches to cut again, and the batcher that goes on after them, on virtual time."""

    def __init__(
        self, plan: list[PlannedBatch], *, limits: QueueLimits | None = None, resumable: Collection[str] = ()
    ) -> None:
        self.clock = LoopClock()
        self.inbox = Inbox(limits or QueueLimits())
        self.planned = PlannedBatches(plan, resumable)
        window = Window(BatchPolicy(max_records=10, max_wait=1))
        self.cutters = (
            PlannedCutter(self.planned, self.inbox, window, self.clock),
            Batcher(self.inbox, window, self.clock),
        )
        self.batches: list[Batch] = []

    async def put(self, *chunks: Chunk) -> None:
        for each in chunks:
            each.arrived_at = self.clock.monotonic()
            await self.inbox.put(each, self.clock)

    async def collect(self) -> None:
        for cutter in self.cutters:
            while (batch := await cutter.next()) is not None:
                self.batches.append(batch)

    def found(self) -> list[tuple[str | None, list[tuple[str, int]]]]:
        return [(batch.id, records_of(list(batch.chunks))) for batch in self.batches]


virtual = [pytest.mark.anyio, pytest.mark.virtual_time]
A, B, C = PARTITIONS


class TestPlannedCutter:
    pytestmark = virtual

    async def test_planned_batches_come_first_and_then_the_window_goes_on(self) -> None:
        bench = Bench([planned((A, 0, 2), (C, 0, 1), id="x-7"), planned((A, 2, 1), id="x-8")])
        async with trio.open_nursery() as tasks:
            tasks.start_soon(bench.collect)
            await bench.put(chunk(A, 0, 5), chunk(B, 0, 1))
            await trio.sleep(10)
            assert bench.batches == []
            await bench.put(chunk(C, 0, 3))
            await trio.lowlevel.checkpoint()
            await bench.put(chunk(C, 3, 1))
            await trio.sleep(2)
            bench.inbox.close("flush")
        assert bench.found()[:2] == [("x-7", [("a", 0), ("a", 1), ("c", 0)]), ("x-8", [("a", 2)])]
        rest = [record for _, records in bench.found()[2:] for record in records]
        assert sorted(rest) == [("a", 3), ("a", 4), ("b", 0), ("c", 1), ("c", 2), ("c", 3)]
        assert [batch.sequence for batch in bench.batches] == list(range(len(bench.batches)))
        assert {batch.id for batch in bench.batches[2:]} == {None}
        for batch in bench.batches:
            assert all(c.entered_at <= c.taken_at <= batch.stamps.closed for c in batch.chunks)
            assert batch.stamps.opened <= batch.stamps.closed

    async def test_a_batch_larger_than_the_queue_finds_room_though_others_fill_it(self) -> None:
        """Neither source nor batch may wait for the other: the plan holds ten times what the inbox does."""
        bench = Bench([planned((C, 0, 100), id="large")], limits=QueueLimits(max_records=10, max_bytes=100))
        async with trio.open_nursery() as tasks:
            tasks.start_soon(bench.collect)
            async with trio.open_nursery() as sources:
                sources.start_soon(bench.put, *[chunk(A, first, 5) for first in range(0, 100, 5)])
                sources.start_soon(bench.put, *[chunk(C, first, 50) for first in range(0, 150, 50)])
            bench.inbox.close("flush")
        assert bench.found()[0] == ("large", [("c", n) for n in range(100)])
        rest = [record for _, records in bench.found()[1:] for record in records]
        assert sorted(rest) == [("a", n) for n in range(100)] + [("c", n) for n in range(100, 150)]

    async def test_a_record_too_large_for_the_room_that_others_leave_gets_in(self) -> None:
        line = b"x" * 99
        large = chunk_of([line], partition=C)
        plan = PlannedBatch(ranges=[Range("files", "c", 100, 1)], id="large")
        bench = Bench([plan], limits=QueueLimits(max_records=100, max_bytes=100))
        async with trio.open_nursery() as tasks:
            tasks.start_soon(bench.collect)
            async with trio.open_nursery() as sources:
                sources.start_soon(bench.put, *[chunk(A, n, 1) for n in range(200)])
                sources.start_soon(bench.put, large)
            bench.inbox.close("flush")
        assert (bench.batches[0].id, lines_of(bench.batches[0].chunks)) == ("large", [line])
        assert [record for batch in bench.batches[1:] for record in records_of(list(batch.chunks))] == [
            ("a", n) for n in range(200)
        ]

    async def test_a_source_that_has_ended_is_waited_for_no_longer(self) -> None:
        bench = Bench([planned((A, 0, 2), (C, 0, 2), id="0"), planned((A, 2, 2), id="1")])
        async with trio.open_nursery() as tasks:
            tasks.start_soon(bench.collect)
            await bench.put(chunk(A, 0, 4))
            await bench.put(chunk(C, 0, 1))
            bench.inbox.end("files")
            await trio.sleep(0.1)
            assert bench.found() == [(None, [("a", 0), ("a", 1), ("c", 0)]), ("1", [("a", 2), ("a", 3)])]
            bench.inbox.close("flush")

    async def test_a_file_that_is_gone_is_waited_for_no_longer(self) -> None:
        bench = Bench([planned((A, 0, 1), id="0"), planned((B, 0, 1), id="1")])
        async with trio.open_nursery() as tasks:
            tasks.start_soon(bench.collect)
            await trio.sleep(1)
            bench.planned.expect_no_more("in", "a")
            bench.inbox.notify()
            await bench.put(chunk(B, 0, 1))
            await trio.lowlevel.checkpoint()
            bench.inbox.close("flush")
        assert bench.found() == [("1", [("b", 0)])]

    async def test_the_end_of_the_input_waits_for_no_plan(self) -> None:
        bench = Bench([planned((A, 0, 4), id="0"), planned((C, 0, 1), id="1")])
        async with trio.open_nursery() as tasks:
            tasks.start_soon(bench.collect)
            await bench.put(chunk(A, 0, 2), chunk(B, 0, 1))
            await trio.sleep(1)
            bench.inbox.close("flush")
        assert bench.found() == [(None, [("a", 0), ("a", 1)]), (None, [("b", 0)])]
        assert bench.planned.changed == 2

    async def test_a_stop_leaves_what_is_not_whole_and_all_behind_it_to_the_next_run(self) -> None:
        plan = [planned((A, 0, 2), id="0"), planned((A, 2, 2), id="1"), planned((B, 0, 1), id="2")]
        bench = Bench(plan, limits=QueueLimits(max_records=8), resumable={"in"})
        async with trio.open_nursery() as tasks:
            tasks.start_soon(bench.collect)
            await bench.put(chunk(A, 0, 3), chunk(B, 0, 2))
            await trio.testing.wait_all_tasks_blocked()
            bench.inbox.hurry("shutdown")
            await trio.testing.wait_all_tasks_blocked()
            await bench.put(chunk(A, 3, 20))  # it was on its way
            await trio.sleep(2 * PLAN_PATIENCE_SECONDS)
            bench.inbox.close("shutdown")
        assert bench.found() == [("0", [("a", 0), ("a", 1)])]
        assert ([each.id for each in bench.planned.postponed], bench.planned.postponed_records) == (["1", "2"], 23)

    async def test_a_stop_leaves_nothing_that_can_not_be_read_again(self) -> None:
        """Sources may wait for what becomes of such records before they end."""
        bench = Bench([planned((A, 0, 2), id="0")], resumable={"in"})
        async with trio.open_nursery() as tasks:
            tasks.start_soon(bench.collect)
            await bench.put(chunk(B, 0, 5), chunk(C, 0, 3), chunk(A, 0, 1))
            await trio.testing.wait_all_tasks_blocked()
            bench.inbox.hurry("shutdown")
            await trio.testing.wait_all_tasks_blocked()
            assert bench.found() == [(None, [("c", 0), ("c", 1), ("c", 2)])]
            await bench.put(chunk(C, 3, 15), chunk(B, 5, 1))
            await trio.testing.wait_all_tasks_blocked()
            bench.inbox.close("shutdown")
        assert [record for _, records in bench.found() for record in records] == [("c", n) for n in range(18)]
        assert bench.planned.postponed_records == 7
        assert {batch.trigger for batch in bench.batches} == {"shutdown", "size"}

    async def test_others_wait_so_long_for_a_plan_and_no_longer(self) -> None:
        bench = Bench([planned((A, 0, 1), id="0"), planned((C, 0, 1), id="1")])
        async with trio.open_nursery() as tasks:
            tasks.start_soon(bench.collect)
            await trio.sleep(3600)  # nobody waits for it: it may come yet
            await bench.put(chunk(B, 0, 1))
            await trio.sleep(PLAN_PATIENCE_SECONDS - 1)
            assert bench.batches == []
            await bench.put(chunk(A, 0, 1))
            await trio.sleep(PLAN_PATIENCE_SECONDS - 1)
            assert bench.found() == [("0", [("a", 0)])]
            await trio.sleep(2)
            assert bench.found() == [("0", [("a", 0)]), (None, [("b", 0)])]
            bench.inbox.close("flush")

    async def test_only_so_much_is_held_for_a_plan(self) -> None:
        bench = Bench([planned((A, 0, 1), id="0")], limits=QueueLimits(max_records=20))
        async with trio.open_nursery() as tasks:
            tasks.start_soon(bench.collect)
            await bench.put(*[chunk(B, first, 10) for first in range(0, 200, 10)])
            await trio.sleep(1)
            bench.inbox.close("flush")
        assert [record for _, records in bench.found() for record in records] == [("b", n) for n in range(200)]
        assert bench.batches[0].stamps.closed < PLAN_PATIENCE_SECONDS

    async def test_any_mixture_of_sources_gives_the_planned_batches(self) -> None:
        order = random.Random(4)
        ends: defaultdict[Partition, int] = defaultdict(int)
        plan = []
        for number in range(40):
            ranges = []
            for where in order.choices(PARTITIONS, k=3):
                count = order.randint(1, 9)
                ranges.append((where, ends[where], count))
                ends[where] += count
            plan.append(planned(*ranges, id=str(number)))
        bench = Bench(plan, limits=QueueLimits(max_records=60))

        async def read(partitions: tuple[Partition, ...]) -> None:
            at = dict.fromkeys(partitions, 0)
            while left := [where for where in partitions if at[where] < ends[where] + 20]:
                where = order.choice(left)
                count = order.randint(1, min(12, ends[where] + 20 - at[where]))
                await bench.put(chunk(where, at[where], count))
                at[where] += count

        async with trio.open_nursery() as tasks:
            tasks.start_soon(bench.collect)
            async with trio.open_nursery() as sources:
                sources.start_soon(read, (A, B))
                sources.start_soon(read, (C,))
            bench.inbox.close("flush")
        assert bench.found()[:40] == [(each.id, expected(each)) for each in plan]
        rest = [record for _, records in bench.found()[40:] for record in records]
        assert sorted(rest) == sorted((w.name, n) for w in PARTITIONS for n in range(ends[w], ends[w] + 20))
