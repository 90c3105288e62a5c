"""Sources and sinks that run and write themselves are wrapped once; what they can do is found by names."""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import pytest

import streambatch as sb
from streambatch.core.checkpoints import CommitMark, OutputMark, PartitionNotes, SavedPartition
from streambatch.core.clock import Clock
from streambatch.core.errors import OptionError
from streambatch.core.intake import Intake
from streambatch.core.parts import Claim, Sink, Site, Source
from streambatch.core.wrapping import WrappedReader, WrappedWriter, as_sink, as_source
from tests.moved_clock import MovedClock

pytestmark = pytest.mark.anyio


@dataclasses.dataclass(frozen=True)
class Plain:
    """A source that has no more than it must."""

    path: str = "in.jsonl"
    name: str = "plain"
    format: str = "jsonl"
    is_finite: bool = True

    @cached_property
    def runs(self) -> list[str]:
        return []

    async def run(self, intake: Intake) -> None:
        self.runs.append(intake.run_id)


@dataclasses.dataclass(frozen=True)
class Able(Plain):
    """A source that has all that a source may have."""

    name: str = "able"
    framing: str = "newline"
    when_full: str = "drop_newest"
    reply: bool = True
    counts_recovered: bool = True
    bound: str = "127.0.0.1:1"

    def resume(self, saved: Mapping[str, SavedPartition]) -> None:
        self.runs.append(f"resumed {len(saved)}")

    def notes(self) -> Mapping[str, PartitionNotes | None]:
        return {"a": {}}

    def acked(self, positions: Mapping[str, int]) -> None:
        self.runs.append(f"acked {len(positions)}")

    async def listening(self) -> str:
        return self.bound


class PlainSink:
    name, format, path = "plain", "csv", "out.csv"

    async def open(self, header: bytes) -> None: ...

    async def write(self, payload: bytes) -> None: ...

    async def sync(self) -> int:
        return 7

    async def close(self) -> None: ...


class AbleSink(PlainSink):
    durable_writes = 3
    clock: Clock | None = None
    marked: Any = None

    def timed_by(self, clock: Clock) -> None:
        self.clock = clock

    def restore(self, mark: OutputMark | None, commit: CommitMark) -> None:
        self.marked = mark

    def mark(self) -> OutputMark:
        return {"length": 7}

    async def write_batch(self, payload: bytes, batch_id: str) -> None: ...

    async def close_due(self) -> None: ...

    async def finish(self) -> None: ...


@pytest.mark.parametrize(
    ("wrap", "part", "found"),
    [
        (as_source, "in.jsonl", "sources: found an object of type str without name, format; allowed: a source"),
        (as_source, sb.FileSource, "sources: found the class FileSource itself; allowed: a source"),
        (as_sink, "out.jsonl", "sink: found an object of type str without name, format; allowed: a sink"),
        (as_sink, sb.FileSink, "sink: found the class FileSink itself; allowed: a sink"),
        (as_sink, None, "sink: found an object of type NoneType without name, format; allowed: a sink"),
    ],
)
def test_what_is_no_part_is_refused_and_named(wrap: Callable[[Any], object], part: object, found: str) -> None:
    with pytest.raises(OptionError) as caught:
        wrap(part)
    assert str(caught.value).startswith(found)


def test_what_is_a_source_or_sink_already_is_left_as_it_is() -> None:
    source, sink = sb.MemorySource([]), sb.NoneSink()
    assert as_source(source) is source
    assert as_sink(sink) is sink


async def test_a_source_that_has_no_more_than_it_must_can_do_nothing_else() -> None:
    source = as_source(Plain())
    assert isinstance(source, Source)
    assert (source.name, source.format, source.is_finite) == ("plain", "jsonl", True)
    assert (source.when_full, source.reply, source.spool, source.max_record_bytes) == ("block", False, None, None)
    assert source.reading() == {"format": "jsonl"}
    assert list(source.claims()) == [Claim("input", "path", "in.jsonl")]
    reader = source.build(Site())
    assert (reader.is_resumable, reader.counts_recovered) == (False, False)
    reader.resume({})
    reader.acked({"a": 1})
    assert (reader.notes(), reader.backlog(), reader.address, await reader.listening()) == ({}, None, None, None)


async def test_what_a_source_can_do_besides_is_passed_on() -> None:
    source = as_source(Able())
    assert (source.when_full, source.reply) == ("drop_newest", True)
    assert source.reading() == {"format": "jsonl", "framing": "newline"}
    reader = source.build(Site())
    assert (reader.is_resumable, reader.counts_recovered) == (True, True)
    reader.resume({})
    reader.acked({"a": 1})
    assert reader.notes() == {"a": {}}
    assert (reader.address, await reader.listening()) == ("127.0.0.1:1", "127.0.0.1:1")
    assert isinstance(reader, WrappedReader)
    assert reader.wrapped.runs == ["resumed 0", "acked 1"]


def test_a_dataclass_is_copied_for_each_run_and_any_other_object_runs_itself() -> None:
    plain = Plain()
    readers = [as_source(plain).build(Site()) for _ in range(2)]
    assert all(isinstance(reader, WrappedReader) and reader.wrapped == plain for reader in readers)
    assert len({id(plain), *(id(reader.wrapped) for reader in readers if isinstance(reader, WrappedReader))}) == 3
    sink = PlainSink()
    writer = as_sink(sink).build(Site())
    assert isinstance(writer, WrappedWriter)
    assert writer.wrapped is sink


def test_a_wrapped_source_gets_another_name_and_is_pickled() -> None:
    source = as_source(Plain()).named("plain_2")
    again: Source = pickle.loads(pickle.dumps(source))
    assert (source.name, again.name, again.build(Site()).name) == ("plain_2", "plain_2", "plain_2")


def test_a_sink_that_claims_a_file_says_so_to_the_manifest() -> None:
    class Claiming(sb.NoneSink):
        def claims(self) -> list[Claim]:
            return [
                Claim("tcp", "address", "h:1"),
                Claim("output", "path", "out.db"),
                Claim("output", "log", "out.log"),
            ]

    assert Claiming().describe()["path"] == "out.db"
    assert sb.NoneSink().describe()["path"] is None


async def test_a_sink_that_has_no_more_than_it_must_can_do_nothing_else() -> None:
    sink = as_sink(PlainSink())
    assert isinstance(sink, Sink)
    assert list(sink.claims()) == [Claim("output", "path", "out.csv")]
    assert sink.describe() == {"name": "plain", "path": "out.csv", "format": "csv"}
    writer = sink.build(Site())
    assert (writer.is_rewindable, writer.is_identified, writer.is_segmented) == (False, False, False)
    assert (writer.mark(), writer.durable_writes, await writer.sync()) == ({}, 0, 7)
    await writer.close_due()
    await writer.finish()


async def test_what_a_sink_can_do_besides_is_passed_on_and_it_takes_the_time_from_the_site() -> None:
    sink, clock = AbleSink(), MovedClock()
    writer = as_sink(sink).build(Site(clock=clock))
    assert (writer.is_rewindable, writer.is_identified, writer.is_segmented) == (True, True, True)
    assert (writer.mark(), writer.durable_writes) == ({"length": 7}, 3)
    assert sink.clock is clock
    writer.restore({"length": 5}, lambda mark: writer.close())
    assert sink.marked == {"length": 5}
