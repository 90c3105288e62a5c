"""The suite for sources: every record once, in order, with its position; bounded; and nothing left behind.

It builds a reader, gives it an intake that collects, and compares what arrives with the records of the source.
"""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from itertools import pairwise, product
from pathlib import Path
from typing import Any, ClassVar

import anyio

from streambatch.codecs.formats import framing_for_format
from streambatch.core.budget import SMALLEST_MEMORY
from streambatch.core.chunks import KEPT_OF_OVERSIZE, Chunk
from streambatch.core.parts import Reader, Source
from streambatch.core.wrapping import RunningSource, as_source
from streambatch.testing.building import check_builds_again, new_reader, part_of, pickled
from streambatch.testing.conformance import Conformance, nothing_left_behind, plain_errors, settled, skip, turns
from streambatch.testing.fakes import CollectingIntake
from streambatch.testing.resuming import AckedRecords, Found
from streambatch.testing.watching import WatchedIntake, check_chunk, check_memory, check_records

LIMIT, OVERSIZE = 4096, 100_000
"""`max_record_bytes` in the test of it, and the bytes of a record far over it."""
FLOOD_BYTES, FLOOD_RECORDS = 32 << 20, 100_000
"""Input for a pipeline that stands still: more than its memory and what the system holds on the way."""
BLOCK_MAX = 1 << 20


class SourceConformance(Conformance):
    """What a pipeline relies on in a source. Inherit, and say with `make_source` how yours is made.

    A source that is sent its records while it runs, as by a client, gets them from `send`; one whose records can't be
    chosen says with `record` what they are.
    """

    many: ClassVar[int] = 2000
    can_be_read_again: ClassVar[bool] = True
    """Whether a second reader finds the records of the first; False if reading uses them up, or `send` adds to them."""

    def make_source(self, folder: Path, records: Sequence[bytes]) -> Source | RunningSource:
        """Return a new source of exactly these records, in this order. folder: an empty one, for this test alone."""
        raise NotImplementedError("define make_source: how is your source made?")

    async def send(self, reader: Any, records: Sequence[bytes]) -> None:
        """Send a running source its records, and return when they are on their way. For sources that are sent some.

        reader: what `build` returned; of a source that runs itself, its copy that runs.
        An exception fails the test, unless the reader was stopped meanwhile.
        """

    def around(self, folder: Path) -> AbstractAsyncContextManager[None]:
        """Return what must be there while a source is made and runs, such as a server that it connects to."""
        return _nothing()

    def source_again(self, source: Any) -> Source | RunningSource:
        """Return a source of the same input as one that was stopped, as after a restart.

        For sources that can resume, if their options can't be built again.
        """
        again: Source | RunningSource = source
        return again

    def record(self, number: int) -> bytes:
        """Return record `number`, without what frames it; no two are equal."""
        return b'{"id": %d, "x": [%d.5], "note": "%s"}' % (number, number, b"-" * 400)

    def long_record(self, size: int) -> bytes:
        """Return a record of `size` bytes."""
        return b'{"id": -1, "x": [0.5], "note": "%s"}' % (b"-" * (size - 34))

    def positions(self, records: Sequence[bytes]) -> Sequence[int] | None:
        """Return the position of each record, where all are of one partition and that is known; else None."""
        return None

    def own_bytes(self, source: Source | RunningSource, chunk: Chunk, index: int) -> bytes:
        """Return record `index` of a chunk as `make_source` was given it."""
        return framing_for_format(source.format).strip(chunk.raw(index))

    def test_it_says_what_it_is(self, tmp_path: Path) -> None:
        async def test(folder: Path) -> None:
            async with self.around(folder):
                source = self.make_source(folder, self._records(1))
                assert isinstance(source.name, str), f"name is {source.name!r}; expected a string"
                assert source.name, "name is empty"
                assert isinstance(source.is_finite, bool), f"is_finite is {source.is_finite!r}; expected True or False"
                framing_for_format(source.format)
                reader = new_reader(source, folder)
                reader.acked({})
                reader.acked({"a partition it may not have": 1})

        self._run(test, tmp_path)

    def test_its_options_are_pickled_and_build_one_reader_after_the_other(self, tmp_path: Path) -> None:
        async def test(folder: Path) -> None:
            records = self._records(self.many)
            async with self.around(folder):
                source = self.make_source(folder, records)
                pickled(source)
                check_builds_again(source)
                for state in ("first", "second") if self.can_be_read_again else ("first",):
                    reader = new_reader(source, folder, state)
                    intake = await self._read_all(reader, records, is_finite=source.is_finite)
                    check_records(self._found(source, intake), records)
                pickled(source)

        self._run(test, tmp_path)

    def test_every_record_comes_once_and_in_order(self, tmp_path: Path) -> None:
        async def test(folder: Path) -> None:
            for count in (self.many, 1, 0):
                records = self._records(count)
                intake, source = await self._read(folder / str(count), records)
                check_records(self._found(source, intake), records)

        self._run(test, tmp_path)

    def test_chunks_are_well_formed(self, tmp_path: Path) -> None:
        async def test(folder: Path) -> None:
            started = CollectingIntake().clock.monotonic()
            intake, source = await self._read(folder / "in", self._records(self.many))
            for chunk in intake.chunks:
                check_chunk(chunk, source)
                assert started <= chunk.arrived_at <= intake.clock.monotonic(), (
                    f"{chunk} arrived at {chunk.arrived_at}, outside of the run; expected a time of intake.clock"
                )

        self._run(test, tmp_path)

    def test_positions_only_move_on_and_are_the_same_each_time(self, tmp_path: Path) -> None:
        async def test(folder: Path) -> None:
            records = self._records(self.many)
            intake, source = await self._read(folder / "first", records)
            found = self._found(source, intake)
            intake, source = await self._read(folder / "second", records)
            again = self._found(source, intake)
            for name, each in found.items():
                at = [position for position, _ in each]
                assert all(a < b for a, b in pairwise(at)), f"positions of {name} go back or stand still"
            assert sorted(_positions(found)) == sorted(_positions(again)), "a second run gives other positions"
            expected = self.positions(records)
            if expected is not None:
                assert _positions(found) == [list(expected)], "positions are not where the records end"

        self._run(test, tmp_path)

    def test_partitions_do_not_overlap_in_time(self, tmp_path: Path) -> None:
        async def test(folder: Path) -> None:
            intake, _ = await self._read(folder / "in", self._records(self.many))
            reached: dict[str, int] = {}
            for chunk in intake.chunks:
                starts = chunk.base + chunk.start
                before = reached.get(chunk.partition.name, 0)
                assert starts >= before, f"{chunk} starts at {starts}, before {before}, which was reached already"
                reached[chunk.partition.name] = chunk.position

        self._run(test, tmp_path)

    def test_cancelled_it_keeps_what_it_put_and_leaves_nothing(self, tmp_path: Path) -> None:
        async def test(folder: Path) -> None:
            records = self._records(self.many)
            whole_intake, whole_source = await self._read(folder / "whole", records)
            whole = [_own(each) for each in self._found(whole_source, whole_intake).values()]
            for at, moment in enumerate((_at_once, _soon, _after_some, _while_it_waits)):
                async with self._started(folder / str(at), records, stalled=moment is _while_it_waits) as (intake, now):
                    await moment(intake)
                    now.cancel()
                for each in self._found(whole_source, intake).values():
                    part = _own(each)
                    assert any(one[: len(part)] == part for one in whole), (
                        f"cancelled {moment.__name__.strip('_')}, it left out records before others that it put"
                    )

        self._run(test, tmp_path)

    def test_a_pipeline_that_gives_up_ends_it(self, tmp_path: Path) -> None:
        async def test(folder: Path) -> None:
            given_up = RuntimeError("the pipeline gave up")
            try:
                with plain_errors():
                    async with self._started(folder / "in", self._records(self.many)) as (intake, _):
                        intake.failure = given_up
                        await anyio.sleep_forever()
            except RuntimeError as error:
                if error is not given_up:
                    raise AssertionError(f"expected what put raised, found {error!r}") from error

        self._run(test, tmp_path)

    def test_while_the_pipeline_takes_nothing_it_reads_no_further(self, tmp_path: Path) -> None:
        async def test(folder: Path) -> None:
            records = self._records(min(FLOOD_RECORDS, FLOOD_BYTES // len(self.record(0))))
            async with self._started(folder / "in", records, stalled=True) as (intake, now):
                await intake.is_waited_for()
                await settled()
                waiting, partitions = intake.waiting, {chunk.partition for chunk in intake.chunks}
                used, size = intake.memory.used, intake.size
                assert waiting <= len(partitions), f"{waiting} puts wait for {len(partitions)} partitions: one each"
                assert used >= size, f"{size} bytes wait in put, and only {used} were taken from the memory budget"
                allowed = SMALLEST_MEMORY + BLOCK_MAX
                assert used <= allowed, f"{used} bytes are held of a budget of {SMALLEST_MEMORY}: it goes on reading"
                now.cancel()

        self._run(test, tmp_path)

    def test_it_goes_on_after_a_stall(self, tmp_path: Path) -> None:
        async def test(folder: Path) -> None:
            records = self._records(self.many)
            async with self._started(folder / "in", records, stalled=True) as (intake, now):
                await intake.is_waited_for()
                intake.go_on()
                await intake.holds(len(records))
                now.cancel()
            check_records(self._found(self.make_source_alike(folder, records), intake), records)

        self._run(test, tmp_path)

    def test_an_oversize_record_is_one_fault(self, tmp_path: Path) -> None:
        async def test(folder: Path) -> None:
            normal = self._records(6)
            records = [*normal[:3], self.long_record(OVERSIZE), *normal[3:]]
            intake, source = await self._read(folder / "in", records, limit=LIMIT)
            faults = [chunk for chunk in intake.chunks if chunk.fault is not None]
            assert len(faults) == 1, f"{len(faults)} faults for one oversize record"
            (fault,) = faults
            assert fault.fault is not None
            assert fault.fault.reason == "oversize", f"reason is {fault.fault.reason!r}; expected 'oversize'"
            assert fault.size <= KEPT_OF_OVERSIZE, f"{fault.size} bytes of it are kept; allowed: {KEPT_OF_OVERSIZE}"
            assert fault.fault.truncated, "the record is cut, and its fault does not say so"
            intake.chunks.remove(fault)
            check_records(self._found(source, intake), normal)

        self._run(test, tmp_path)

    def test_it_resumes_where_records_were_acked(self, tmp_path: Path) -> None:
        async def test(folder: Path) -> None:
            records = self._records(self.many)
            if not new_reader(self.make_source_alike(folder, records), folder).is_resumable:
                skip("its records can't be read again")
            for at, (stops, share) in enumerate(product((1, self.many // 2, self.many), (0.0, 0.6, 1.0))):
                await self._resume_twice(folder / str(at), records, stops, share)

        self._run(test, tmp_path)

    async def _resume_twice(self, folder: Path, records: Sequence[bytes], stops: int, share: float) -> None:
        """Stop it after so many records, resume from a share of what came, stop that too, and read the rest.

        Records that are sent to the source must be safe with it when `send` returns.
        """
        _make(folder)
        acked, source = AckedRecords(), self.make_source(folder, records)
        async with self.around(folder):
            for wanted, part in ((stops, share), (stops // 2, share), (len(records), 1.0)):
                if acked.stops:
                    source = self.source_again(source)
                reader = new_reader(source, folder)
                reader.resume(acked.saved())
                count = min(wanted, len(records) - acked.count)
                intake = await self._until(reader, () if acked.stops else records, count)
                acked.stopped(self._found(source, intake), reader.notes(), part)
        check_records(acked.found, records)

    async def _until(self, reader: Reader, records: Sequence[bytes], count: int) -> CollectingIntake:
        """Run a reader until so many records came, then stop it."""
        intake = WatchedIntake()
        async with nothing_left_behind(part_of(reader)), anyio.create_task_group() as reading:
            reading.start_soon(self._run_reader, reader, intake)
            if records:
                await self.send(part_of(reader), records)
            await intake.holds(count)
            reading.cancel_scope.cancel()
        check_memory(intake, reader)
        return intake

    def make_source_alike(self, folder: Path, records: Sequence[bytes]) -> Source | RunningSource:
        """Return a source to ask for its format; it isn't run."""
        folder.joinpath("alike").mkdir(exist_ok=True)
        return self.make_source(folder / "alike", records)

    async def _read(
        self, folder: Path, records: Sequence[bytes], *, limit: int | None = None
    ) -> tuple[CollectingIntake, Source | RunningSource]:
        """Run a source until all records have come; one that ends must do so by itself, any other must go on."""
        _make(folder)
        async with self.around(folder):
            source = self._made(folder, records, limit)
            intake = await self._read_all(new_reader(source, folder), records, is_finite=source.is_finite)
        return intake, source

    async def _read_all(self, reader: Reader, records: Sequence[bytes], *, is_finite: bool) -> CollectingIntake:
        intake = WatchedIntake()
        async with nothing_left_behind(part_of(reader)), anyio.create_task_group() as tasks:
            tasks.start_soon(intake.watch)
            async with anyio.create_task_group() as reading:
                reading.start_soon(self._run_reader, reader, intake)
                reading.start_soon(self.send, part_of(reader), records)
                if not is_finite:
                    await intake.holds(len(records))
                    await settled()
                    assert not intake.ended, "it is not finite, and ended by itself"
                    reading.cancel_scope.cancel()
            tasks.cancel_scope.cancel()
        check_memory(intake, reader)
        return intake

    @asynccontextmanager
    async def _started(
        self, folder: Path, records: Sequence[bytes], *, stalled: bool = False
    ) -> AsyncIterator[tuple[CollectingIntake, anyio.CancelScope]]:
        """Run a source beside the test, until it is cancelled or ends."""
        _make(folder)
        intake = WatchedIntake()
        if stalled:
            intake.stall()
        async with self.around(folder):
            reader = new_reader(self._made(folder, records, None), folder)
            try:
                async with nothing_left_behind(part_of(reader)), anyio.create_task_group() as reading:
                    reading.start_soon(self._run_reader, reader, intake)
                    reading.start_soon(self._send, reader, records, intake, reading.cancel_scope)
                    try:
                        yield intake, reading.cancel_scope
                    finally:
                        intake.go_on()
            finally:
                check_memory(intake, reader)

    def _made(self, folder: Path, records: Sequence[bytes], limit: int | None) -> Source | RunningSource:
        source: Any = self.make_source(folder, records)
        if limit is not None and as_source(source).max_record_bytes is None:
            skip("it has no max_record_bytes")
        made: Source | RunningSource = source if limit is None else dataclasses.replace(source, max_record_bytes=limit)
        return made

    async def _run_reader(self, reader: Reader, intake: WatchedIntake) -> None:
        await reader.run(intake)
        intake.ended = True

    async def _send(
        self, reader: Reader, records: Sequence[bytes], intake: CollectingIntake, scope: anyio.CancelScope
    ) -> None:
        try:
            await self.send(part_of(reader), records)
        except Exception:
            # Once the reader is stopped, or its pipeline has given up, its client has reason to fail.
            if not scope.cancel_called and intake.failure is None:
                raise

    def _records(self, count: int) -> list[bytes]:
        return [self.record(number) for number in range(count)]

    def _found(self, source: Source | RunningSource, intake: CollectingIntake) -> Found:
        found: Found = {}
        for chunk in intake.chunks:
            each = found.setdefault(chunk.partition.name, [])
            each += [(chunk.position_of(at), self.own_bytes(source, chunk, at)) for at in range(chunk.count)]
        return found


async def _at_once(intake: CollectingIntake) -> None:
    """Before it has begun."""


async def _soon(intake: CollectingIntake) -> None:
    await turns(3)


async def _after_some(intake: CollectingIntake) -> None:
    await intake.holds(1)


async def _while_it_waits(intake: CollectingIntake) -> None:
    await intake.is_waited_for()


def _positions(found: Found) -> list[list[int]]:
    return [[position for position, _ in each] for each in found.values()]


def _own(each: Sequence[tuple[int, bytes]]) -> list[bytes]:
    return [record for _, record in each]


def _make(folder: Path) -> None:
    folder.mkdir()


@asynccontextmanager
async def _nothing() -> AsyncIterator[None]:
    yield
