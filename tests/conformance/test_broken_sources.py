"""The suite for sources notices what is wrong with a source that does one thing wrong."""

import dataclasses
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import numpy as np
import pytest

from streambatch.core.checkpoints import PartitionNotes, SavedPartition
from streambatch.core.chunks import (
    KEPT_OF_OVERSIZE,
    Chunk,
    Fault,
    Partition,
)
from streambatch.core.intake import Intake
from streambatch.core.parts import Reader, Site, Source
from streambatch.core.wrapping import RunningSource
from streambatch.testing import SourceConformance
from tests.conformance.verdicts import check_noticed, failures

pytestmark = pytest.mark.slow
RECORDS_PER_CHUNK = 100


@dataclasses.dataclass(frozen=True)
class Rows:
    """A source that does all by itself what `Feed` does for those that are built in; subclasses break it."""

    records: Sequence[bytes]
    name: str = "rows"
    format: str = "jsonl"
    max_record_bytes: int = 1 << 20
    is_finite: bool = True

    async def run(self, intake: Intake) -> None:
        for chunk in self.chunks(intake):
            await anyio.lowlevel.checkpoint()
            await intake.memory.reserve(chunk.size)
            await intake.put(chunk)

    def chunks(self, intake: Intake) -> list[Chunk]:
        """Return what to put; all at once, since none of it was read from anywhere."""
        partition, base, now = Partition(self.name, f"{intake.run_id}-1"), 0, intake.clock.monotonic()
        chunks: list[Chunk] = []
        held: list[bytes] = []
        for record in [*self.records, None]:
            is_oversize = record is not None and len(record) > self.max_record_bytes
            if held and (record is None or is_oversize or len(held) == RECORDS_PER_CHUNK):
                ends = np.cumsum([len(line) for line in held])
                chunks.append(Chunk(partition, b"".join(held), ends, base, now))
                base += int(ends[-1])
                held = []
            if record is None:
                break
            if is_oversize:
                kept = record[:KEPT_OF_OVERSIZE]
                base += len(record) + 1
                fault = Fault("oversize", "too long", truncated=True)
                chunks.append(Chunk(partition, kept, np.array([len(kept)]), base - len(kept), now, fault=fault))
            else:
                held.append(record + b"\n")
        return chunks

    def acked(self, positions: Mapping[str, int]) -> None: ...

    def revoke(self, partition: str) -> None: ...


class Loses(Rows):
    def chunks(self, intake: Intake) -> list[Chunk]:
        return super().chunks(intake)[:-1]


class Doubles(Rows):
    def chunks(self, intake: Intake) -> list[Chunk]:
        chunks = super().chunks(intake)
        return [*chunks, *chunks[-1:]]


class Swaps(Rows):
    def chunks(self, intake: Intake) -> list[Chunk]:
        return super().chunks(intake)[::-1]


class Invents(Rows):
    def chunks(self, intake: Intake) -> list[Chunk]:
        return dataclasses.replace(self, records=[*self.records, b"invented"])._plain(intake)

    def _plain(self, intake: Intake) -> list[Chunk]:
        return Rows.chunks(self, intake)


class ForgetsBase(Rows):
    """Every chunk starts at position 0 again."""

    def chunks(self, intake: Intake) -> list[Chunk]:
        chunks = super().chunks(intake)
        for chunk in chunks:
            chunk.base = 0
        return chunks


class ChangesPositions(Rows):
    """Positions depend on something else than the input."""

    def chunks(self, intake: Intake) -> list[Chunk]:
        chunks, by = super().chunks(intake), time.monotonic_ns()
        for chunk in chunks:
            chunk.base += by
        return chunks


class NamesAnother(Rows):
    def chunks(self, intake: Intake) -> list[Chunk]:
        chunks = super().chunks(intake)
        for chunk in chunks:
            chunk.partition = Partition("another", chunk.partition.name)
        return chunks


class WallTime(Rows):
    def chunks(self, intake: Intake) -> list[Chunk]:
        chunks = super().chunks(intake)
        for chunk in chunks:
            chunk.arrived_at = time.time()
        return chunks


class SharesItsBuffer(Rows):
    def chunks(self, intake: Intake) -> list[Chunk]:
        chunks = super().chunks(intake)
        for chunk in chunks:
            chunk.payload = bytearray(chunk.payload)  # type: ignore[assignment]
        return chunks


class ReservesNothing(Rows):
    async def run(self, intake: Intake) -> None:
        for chunk in self.chunks(intake):
            await anyio.lowlevel.checkpoint()
            await intake.put(chunk)


class KeepsMemory(Rows):
    async def run(self, intake: Intake) -> None:
        intake.memory.take(10)
        await super().run(intake)


class PutsAllAtOnce(Rows):
    """Starts a task per chunk, so that a put that waits stops nothing."""

    async def run(self, intake: Intake) -> None:
        async with anyio.create_task_group() as tasks:
            for chunk in self.chunks(intake):
                intake.memory.take(chunk.size)
                tasks.start_soon(intake.put, chunk)


class LeavesTasks(Rows):
    async def run(self, intake: Intake) -> None:
        import asyncio

        self.__dict__["task"] = asyncio.create_task(asyncio.sleep(3600), name="left")
        await super().run(intake)


LEFT: list[socket.socket] = []


@pytest.fixture(autouse=True)
def close_what_is_left() -> Iterator[None]:
    yield
    while LEFT:
        LEFT.pop().close()


class LeavesSockets(Rows):
    async def run(self, intake: Intake) -> None:
        LEFT.append(socket.socket())
        await super().run(intake)


class DropsSockets(Rows):
    """Leaves it to the garbage collector."""

    async def run(self, intake: Intake) -> None:
        socket.socket()
        await super().run(intake)


class NeverEnds(Rows):
    async def run(self, intake: Intake) -> None:
        await super().run(intake)
        await anyio.sleep_forever()


class HogsTheLoop(Rows):
    async def run(self, intake: Intake) -> None:
        for _ in range(1000):
            for chunk in self.chunks(intake):
                await intake.memory.reserve(chunk.size)
                await intake.put(chunk)


class SkipsWhenCancelled(Rows):
    """Cancelled, it still puts its last chunk, though not those before."""

    async def run(self, intake: Intake) -> None:
        chunks = self.chunks(intake)
        try:
            for chunk in chunks:
                await anyio.sleep(0.001)
                intake.memory.take(chunk.size)
                await intake.put(chunk)
        except BaseException:
            intake.memory.take(chunks[-1].size)
            with anyio.CancelScope(shield=True):
                await intake.put(chunks[-1])
            raise


class SwallowsErrors(Rows):
    async def run(self, intake: Intake) -> None:
        for chunk in self.chunks(intake):
            await anyio.lowlevel.checkpoint()
            await intake.memory.reserve(chunk.size)
            try:
                await intake.put(chunk)
            except RuntimeError:
                return


class DropsOversize(Rows):
    def chunks(self, intake: Intake) -> list[Chunk]:
        return [chunk for chunk in super().chunks(intake) if chunk.fault is None]


class KeepsAllOfOversize(Rows):
    def chunks(self, intake: Intake) -> list[Chunk]:
        return dataclasses.replace(self, max_record_bytes=1 << 30)._plain(intake)

    def _plain(self, intake: Intake) -> list[Chunk]:
        return Rows.chunks(self, intake)


class Resumes(Rows):
    """Goes on after what was acked; subclasses don't."""

    def resume(self, saved: Mapping[str, SavedPartition]) -> None:
        self.memory["from"] = max([each.position for each in saved.values()], default=0)

    def notes(self) -> Mapping[str, PartitionNotes | None]:
        return {"rows": {}}

    @cached_property
    def memory(self) -> dict[str, int]:
        return {}

    def chunks(self, intake: Intake) -> list[Chunk]:
        left = []
        for chunk in super().chunks(intake):
            chunk.partition = Partition(self.name, "rows")
            acked = int(np.searchsorted(chunk.ends + chunk.base, self.memory.get("from", 0), side="right"))
            if 0 < acked < chunk.count:
                chunk.split_off(acked)
            if acked < chunk.last:
                left.append(chunk)
        return left


class StartsOver(Resumes):
    def resume(self, saved: Mapping[str, SavedPartition]) -> None: ...


class StartsOverTheSecondTime(Resumes):
    def resume(self, saved: Mapping[str, SavedPartition]) -> None:
        super().resume({} if any(each.notes.get("runs") for each in saved.values()) else saved)
        self.memory["runs"] = int(bool(saved))

    def notes(self) -> Mapping[str, PartitionNotes | None]:
        return {"rows": {"runs": self.memory["runs"]}}


class GoesOnAfterWhatItRead(Resumes):
    def resume(self, saved: Mapping[str, SavedPartition]) -> None:
        self.memory["from"] = max([each.read_to for each in saved.values()], default=0)


class TellsNoNotes(Resumes):
    def notes(self) -> Mapping[str, PartitionNotes | None]:
        return {}


class KeepsStateInItsOptions(Source):
    """Builds readers that share how far they have come."""

    name, format, is_finite = "shares", "jsonl", True

    def __init__(self, records: Sequence[bytes]) -> None:
        self.left = list(Rows(records, name=self.name).records)

    def build(self, site: Site) -> Reader:
        return SharedReader(self.left)


class SharedReader(Reader):
    name = "shares"

    def __init__(self, left: list[bytes]) -> None:
        self.left = left

    async def run(self, intake: Intake) -> None:
        await Rows(list(self.left), name=self.name).run(intake)
        self.left.clear()


class CanNotBePickled(Rows):
    def __getstate__(self) -> Any:
        raise TypeError("it holds a socket")


class Suite(SourceConformance):
    patience_seconds = 3.0

    def __init__(self, make: Callable[[Sequence[bytes]], Any]) -> None:
        self.make = make

    def make_source(self, folder: Path, records: Sequence[bytes]) -> Source | RunningSource:
        source: Source | RunningSource = self.make(records)
        return source


class PatientSuite(Suite):
    """For sources that do all they should, be the machine as busy as it may."""

    patience_seconds = 30.0


def test_a_right_one_passes(tmp_path: Path) -> None:
    assert failures(PatientSuite(Rows), tmp_path) == {}


def test_a_right_one_that_resumes_passes(tmp_path: Path) -> None:
    assert failures(PatientSuite(Resumes), tmp_path) == {}


ORDER, FORM = "every_record_comes_once_and_in_order", "chunks_are_well_formed"
POSITIONS = "positions_only_move_on_and_are_the_same_each_time"
RESUMES = "it_resumes_where_records_were_acked"
AGAIN = "its_options_are_pickled_and_build_one_reader_after_the_other"
CANCELLED = "cancelled_it_keeps_what_it_put_and_leaves_nothing"


@pytest.mark.parametrize(
    ("source", "test", "saying"),
    [
        (partial(Rows, name=""), "it_says_what_it_is", "name is empty"),
        (Loses, ORDER, "100 of 2000 records did not come, the first is number 1900"),
        (Doubles, ORDER, "record 1900 came twice"),
        (Swaps, ORDER, "record 1800 came after record 1999"),
        (Invents, ORDER, "a record that nobody wrote: b'invented'"),
        (ReservesNothing, ORDER, "that it never took from the memory budget"),
        (KeepsMemory, ORDER, "keeps 10 bytes of the memory budget"),
        (LeavesTasks, ORDER, "LeavesTasks leaves tasks running"),
        (LeavesSockets, ORDER, "LeavesSockets leaves open: {('"),
        (DropsSockets, ORDER, 'leaves it to the garbage collector to close: ["unclosed <socket'),
        (NeverEnds, ORDER, "it hangs"),
        (HogsTheLoop, ORDER, "never lets other tasks run"),
        (NamesAnother, FORM, "is of source another, not rows"),
        (WallTime, FORM, "expected a time of intake.clock"),
        (SharesItsBuffer, FORM, "holds bytearray, which may change"),
        (ForgetsBase, POSITIONS, "go back or stand still"),
        (ForgetsBase, "partitions_do_not_overlap_in_time", "which was reached already"),
        (ChangesPositions, POSITIONS, "a second run gives other positions"),
        (SkipsWhenCancelled, CANCELLED, "it left out records before others that it put"),
        (SwallowsErrors, "a_pipeline_that_gives_up_ends_it", "it hangs"),
        (PutsAllAtOnce, "while_the_pipeline_takes_nothing_it_reads_no_further", "puts wait for 1 partitions"),
        (Loses, "it_goes_on_after_a_stall", "it hangs"),
        (StartsOver, RESUMES, "it went back to"),
        (StartsOverTheSecondTime, RESUMES, "it went back to"),
        (GoesOnAfterWhatItRead, RESUMES, "it hangs"),
        (TellsNoNotes, RESUMES, "it told no notes of rows"),
        (KeepsStateInItsOptions, AGAIN, "2000 of 2000 records did not come"),
        (CanNotBePickled, AGAIN, "CanNotBePickled can't be pickled: it holds a socket"),
        (DropsOversize, "an_oversize_record_is_one_fault", "0 faults for one oversize record"),
        (KeepsAllOfOversize, "an_oversize_record_is_one_fault", "0 faults for one oversize record"),
    ],
)
def test_a_wrong_one_is_noticed(
    tmp_path: Path, source: Callable[[Sequence[bytes]], Any], test: str, saying: str
) -> None:
    check_noticed(Suite(source), tmp_path, test, saying)


def test_one_that_ends_though_it_says_it_does_not_is_noticed(tmp_path: Path) -> None:
    suite = Suite(lambda records: Rows(records, is_finite=False))
    check_noticed(suite, tmp_path, "every_record_comes_once_and_in_order", "is not finite, and ended by itself")
