"""The suite for sinks: every row once and in order, one header, and an output that failures and stops leave whole.

It writes the payloads that a pipeline would write in the sink's format, and reads the rows back from the output.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from pathlib import Path
from typing import ClassVar

import anyio

from streambatch.codecs.formats import TABLES
from streambatch.core.errors import SinkOutage, StreambatchError
from streambatch.core.parts import Sink, Writer
from streambatch.core.wrapping import WritingSink
from streambatch.testing.building import check_builds_again, new_writer, part_of, pickled
from streambatch.testing.conformance import nothing_left_behind, skip, turns
from streambatch.testing.kept import Kept
from streambatch.testing.rows import Row, encoded, encoder_of_rows
from streambatch.testing.writing import ReadsRows, WritesRows

BATCHES, BATCH_ROWS, LARGE_ROWS = 20, 50, 60_000
OUTAGE_WRITES = 100
CANCEL_AFTER = (0, 1, 2, 3, 10)
"""Turns of the event loop after which a write is cancelled."""


class SinkConformance(ReadsRows):
    """What a pipeline relies on in a sink. Inherit; say with `make_sink` and `read_rows` how yours is made and read.

    shows_synced: whether what was synced can be read before the sink is closed.
    """

    shows_synced: ClassVar[bool] = True

    def make_sink(self, folder: Path) -> Sink | WritingSink:
        """Return a sink whose output is in `folder`, the same for the same folder."""
        raise NotImplementedError("define make_sink: how is your sink made?")

    def around(self, folder: Path) -> AbstractAsyncContextManager[None]:
        """Return what must be there while a sink is made and used, such as a server that it connects to."""
        return _nothing()

    def break_output(self, folder: Path) -> None:
        """Make writes fail from now on, as when the disk is full. For sinks that can be made to."""
        skip("it is not said how to break the output")

    def mend_output(self, folder: Path) -> None:
        """Undo `break_output`."""

    def outage(self, folder: Path) -> AbstractAsyncContextManager[None]:
        """Return a context in which the other side is away. For sinks that have one: writes in it raise SinkOutage."""
        skip("it is not said how to have an outage")

    def test_it_says_what_it_is(self, tmp_path: Path) -> None:
        async def test(folder: Path) -> None:
            async with self.around(folder):
                sink = self.make_sink(folder)
                assert isinstance(sink.name, str), f"name is {sink.name!r}; expected a string"
                assert sink.name, "name is empty"
                encoder_of_rows(sink.format)

        self._run(test, tmp_path)

    def test_rows_are_written_whole_and_in_order(self, tmp_path: Path) -> None:
        async def test(folder: Path) -> None:
            batches = [*_batches(BATCHES), _rows(10**6, LARGE_ROWS), *_batches(2, start=2 * 10**6)]
            async with self._open(folder) as (writer, write):
                for batch in batches:
                    await write(batch)
                await _complete(writer)
            self._check(folder, [row for batch in batches for row in batch])

        self._run(test, tmp_path)

    def test_an_output_without_rows_is_one(self, tmp_path: Path) -> None:
        async def test(folder: Path) -> None:
            async with self._open(folder) as (writer, _):
                await _complete(writer)
            self._check(folder, [])

        self._run(test, tmp_path)

    def test_sync_returns_a_length_that_never_shrinks(self, tmp_path: Path) -> None:
        async def test(folder: Path) -> None:
            async with self._open(folder) as (writer, write):
                lengths = [await writer.sync()]
                for batch in _batches(BATCHES):
                    await write(batch)
                    lengths.append(await writer.sync())
                for length in lengths:
                    assert type(length) is int, f"sync returned {length!r}; expected bytes, as an integer"
                assert lengths == sorted(lengths), f"the length shrinks: {lengths}"
                if write.format not in TABLES:
                    assert lengths[-1] > lengths[0], f"the length stays {lengths[0]} whatever is written"

        self._run(test, tmp_path)

    def test_what_was_synced_can_be_read(self, tmp_path: Path) -> None:
        async def test(folder: Path) -> None:
            if not self.shows_synced:
                skip("its output is complete when it is closed")
            async with self._open(folder) as (writer, write):
                written: list[Row] = []
                for batch in _batches(3):
                    await write(batch)
                    await writer.sync()
                    written += batch
                    self._check(folder, written)

        self._run(test, tmp_path)

    def test_when_it_is_finished_every_write_is_durable(self, tmp_path: Path) -> None:
        async def test(folder: Path) -> None:
            async with self._open(folder) as (writer, write):
                if not writer.is_segmented:
                    skip("it has no segments")
                for count, batch in enumerate(_batches(BATCHES), start=1):
                    await write(batch)
                    await writer.sync()
                    assert 0 <= writer.durable_writes <= count, f"{writer.durable_writes} of {count} writes are durable"
                await writer.finish()
                assert writer.durable_writes == BATCHES, (
                    f"{writer.durable_writes} of {BATCHES} writes, all done, are durable"
                )

        self._run(test, tmp_path)

    def test_sync_and_write_may_overlap(self, tmp_path: Path) -> None:
        async def test(folder: Path) -> None:
            done = anyio.Event()

            async def sync_on(writer: Writer) -> None:
                while not done.is_set():
                    await writer.sync()
                    await turns(1)

            async with self._open(folder) as (writer, write):
                async with anyio.create_task_group() as syncing:
                    syncing.start_soon(sync_on, writer)
                    for batch in _batches(BATCHES):
                        await write(batch)
                        await turns(1)
                    done.set()
                await _complete(writer)
            self._check(folder, [row for batch in _batches(BATCHES) for row in batch])

        self._run(test, tmp_path)

    def test_close_may_be_called_twice_and_without_open(self, tmp_path: Path) -> None:
        async def test(folder: Path) -> None:
            async with self.around(folder):
                await new_writer(self.make_sink(folder), folder).close()
            async with self._open(folder) as (writer, write):
                await write(_rows(0, 1))
                await _complete(writer)
                await writer.close()
                await writer.close()
            self._check(folder, _rows(0, 1))

        self._run(test, tmp_path)

    def test_an_output_that_is_there_is_kept_or_replaced_as_a_whole(self, tmp_path: Path) -> None:
        async def test(folder: Path) -> None:
            old, new = _rows(0, 5), _rows(5, 2)
            async with self._open(folder) as (writer, write):
                await write(old)
                await _complete(writer)
            try:
                async with self._open(folder) as (writer, write):
                    await write(new)
                    await _complete(writer)
            except StreambatchError:
                return self._check(folder, old)
            self._check_second(folder, old, new)

        self._run(test, tmp_path)

    def test_its_options_are_pickled_and_build_one_writer_after_the_other(self, tmp_path: Path) -> None:
        async def test(folder: Path) -> None:
            old, new = _rows(0, 5), _rows(5, 2)
            async with self.around(folder):
                sink = self.make_sink(folder)
                pickled(sink)
                check_builds_again(sink)
                async with self._opened(sink, folder) as (writer, write):
                    await write(old)
                    await _complete(writer)
                pickled(sink)
                try:
                    async with self._opened(sink, folder) as (writer, write):
                        await write(new)
                        await _complete(writer)
                except StreambatchError:
                    return self._check(folder, old)
            self._check_second(folder, old, new)

        self._run(test, tmp_path)

    def test_a_cancelled_write_tears_no_row(self, tmp_path: Path) -> None:
        async def test(folder: Path) -> None:
            for after in CANCEL_AFTER:
                own = folder / str(after)
                own.mkdir()
                before, cancelled, later = _rows(0, 5), _rows(5, 20_000), _rows(10**6, 5)
                async with self._open(own) as (writer, write):
                    await write(before)
                    async with anyio.create_task_group() as tasks:
                        tasks.start_soon(write, cancelled)
                        await turns(after)
                        tasks.cancel_scope.cancel()
                    await write(later)
                    await _complete(writer)
                self._check_torn(own, before, cancelled, later)

        self._run(test, tmp_path)

    def test_a_write_that_failed_can_be_repeated(self, tmp_path: Path) -> None:
        async def test(folder: Path) -> None:
            first, second = _rows(0, 5), _rows(5, 5)
            async with self._open(folder) as (writer, write):
                await write(first)
                await writer.sync()
                self.break_output(folder)
                try:
                    await self._fails(writer, write, second)
                    await self._fails(writer, write, second)
                finally:
                    self.mend_output(folder)
                await write(second)
                await _complete(writer)
            self._check(folder, first + second)

        self._run(test, tmp_path)

    def test_an_outage_is_told_and_the_same_write_goes_through_after_it(self, tmp_path: Path) -> None:
        async def test(folder: Path) -> None:
            before, *batches = _batches(OUTAGE_WRITES + 2)
            written = list(before)
            async with self._open(folder) as (writer, write):
                await write(before)
                await writer.sync()
                async with self.outage(folder):
                    # A sink that gets no answers may notice later than the write after which the other side left.
                    while batches and await self._is_taken(writer, write, batches[0]):
                        written += batches.pop(0)
                    assert len(batches) > 1, f"the other side is away, and {OUTAGE_WRITES} writes say nothing"
                    assert not await self._is_taken(writer, write, batches[0]), (
                        "a second try in the outage says nothing"
                    )
                for batch in batches[:2]:
                    await write(batch)
                    written += batch
                await _complete(writer)
            self._check_repeated(folder, written)

        self._run(test, tmp_path)

    def test_it_can_be_opened_when_an_outage_is_over(self, tmp_path: Path) -> None:
        async def test(folder: Path) -> None:
            async with self.around(folder):
                sink = self.make_sink(folder)
                writer, encoder = new_writer(sink, folder), encoder_of_rows(sink.format)
                async with nothing_left_behind(part_of(writer)):
                    is_open = False
                    async with self.outage(folder):
                        with suppress(SinkOutage):
                            await writer.open(encoder.header())
                            is_open = True
                    if not is_open:
                        await writer.open(encoder.header())
                    await writer.write(encoded(encoder, _rows(0, 5)))
                    await _complete(writer)
                    await writer.close()
            self._check_repeated(folder, _rows(0, 5))

        self._run(test, tmp_path)

    def test_a_batch_may_come_twice_under_its_id(self, tmp_path: Path) -> None:
        async def test(folder: Path) -> None:
            async with self._open(folder) as (writer, write):
                if not writer.is_identified:
                    skip("it takes no ids of batches")
                for number, batch in enumerate(_batches(3)):
                    for _ in range(2):
                        await writer.write_batch(write.payload(batch), f"run-{number}")
                await _complete(writer)
            self._check_repeated(folder, [row for batch in _batches(3) for row in batch])

        self._run(test, tmp_path)

    async def _is_taken(self, writer: Writer, write: WritesRows, rows: Sequence[Row]) -> bool:
        """Write while the other side is away. Returns whether the sink could not know that yet."""
        try:
            await write(rows)
        except SinkOutage as error:
            _check_named(writer, error)
            return False
        except Exception as error:
            raise AssertionError(f"expected a SinkOutage, found {error!r}") from error
        return True

    def test_it_can_be_taken_back_to_a_mark(self, tmp_path: Path) -> None:
        async def test(folder: Path) -> None:
            kept = Kept()
            for round in range(4):  # the first is a stop before anything was written
                async with self._open(folder, kept) as (writer, write):
                    for batch in _batches(2 * round, start=1000 * round):
                        await write(batch)
                        kept.written.append(batch)
                        # Not after each: what follows the last checkpoint must be taken back.
                        if len(kept.written) % 2:
                            await kept.checkpoint(writer)
            async with self._open(folder, kept) as (writer, write):
                last = _rows(10**6, 5)
                await write(last)
                kept.written.append(last)
                await _complete(writer)
            self._check(folder, [row for batch in kept.written for row in batch])

        self._run(test, tmp_path)

    def test_it_goes_on_from_the_mark_it_was_completed_with(self, tmp_path: Path) -> None:
        async def test(folder: Path) -> None:
            kept = Kept()
            for batch in _batches(3):
                async with self._open(folder, kept) as (writer, write):
                    await write(batch)
                    kept.written.append(batch)
                    await _complete(writer)
                    await kept.commit(writer.mark())
                self._check(folder, [row for batch in kept.written for row in batch])

        self._run(test, tmp_path)

    async def _fails(self, writer: Writer, write: WritesRows, rows: Sequence[Row]) -> None:
        try:
            await write(rows)
        except StreambatchError as error:
            _check_named(writer, error)
        except Exception as error:
            raise AssertionError(f"expected a SinkError, found {error!r}") from error
        else:
            raise AssertionError("the output is broken, and write says nothing")

    @asynccontextmanager
    async def _open(self, folder: Path, kept: Kept | None = None) -> AsyncIterator[tuple[Writer, WritesRows]]:
        """Open a writer as a pipeline does, with what is kept of the output. Yields it, and what writes rows to it."""
        async with self.around(folder), self._opened(self.make_sink(folder), folder, kept) as opened:
            yield opened

    @asynccontextmanager
    async def _opened(
        self, sink: Sink | WritingSink, folder: Path, kept: Kept | None = None
    ) -> AsyncIterator[tuple[Writer, WritesRows]]:
        writer = new_writer(sink, folder)
        write = WritesRows(writer, sink.format)
        if kept is not None:
            if not writer.is_rewindable:
                skip("it can't be taken back")
            kept.restore(writer)
        async with nothing_left_behind(part_of(writer)):
            try:
                await writer.open(write.header())
                yield writer, write
            finally:
                await writer.close()


def _check_named(writer: Writer, error: Exception) -> None:
    assert writer.name in str(error), f"the error does not name sink {writer.name}: {error}"


async def _complete(writer: Writer) -> None:
    """End the output as a pipeline does when its input has ended."""
    if writer.is_segmented:
        await writer.finish()
    await writer.sync()


def _rows(start: int, count: int) -> list[Row]:
    return [(number, number + 0.5) for number in range(start, start + count)]


def _batches(count: int, start: int = 0) -> list[list[Row]]:
    return [_rows(start + at * BATCH_ROWS, BATCH_ROWS) for at in range(count)]


@asynccontextmanager
async def _nothing() -> AsyncIterator[None]:
    yield
