"""A whole pipeline: every record is accounted for, in order, whatever ends the run, on both event loops."""

import json
import threading
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import streambatch as sb
from streambatch.connectors.memory.sink import MemoryWriter
from streambatch.core.batches import Batch
from streambatch.core.errors import ModelError, SinkError, TooManyDeadError
from streambatch.core.events import Observer, PipelineState
from streambatch.core.outcomes import Outcome
from streambatch.core.parts import Site
from streambatch.core.types import FloatArray

pytestmark = pytest.mark.anyio
SCHEMA = sb.RecordSchema(id="id", features="x", shape=(2,), dtype="float64")
MODEL = sb.LinearModel(np.array([1.0, 10.0]), 0.0)


def line(number: int) -> bytes:
    return b'{"id": %d, "x": [%d, 1]}\n' % (number, number)


def lines(numbers: Iterable[int]) -> bytes:
    return b"".join(map(line, numbers))


def source(*blocks: bytes, **options: Any) -> sb.MemorySource:
    return sb.MemorySource(list(blocks), **options)


def pipeline(sources: Any, sink: Any = None, model: Any = MODEL, **options: Any) -> sb.Pipeline:
    return sb.Pipeline(sources=sources, record=SCHEMA, model=model, sink=sink or sb.MemorySink(), **options)


def writing(writer: type[MemoryWriter]) -> sb.MemorySink:
    """Return a sink that writes with such a writer."""

    class Writing(sb.MemorySink):
        def build(self, site: Site) -> MemoryWriter:
            return writer(self.name, self.output)

    return Writing()


def scores(sink: Any) -> list[dict[str, Any]]:
    return [json.loads(each) for each in b"".join(sink.payloads).splitlines()]


def balanced(report: sb.RunReport) -> bool:
    records = report.records
    out = ("scored", "dead_lettered", "dropped", "unacked")
    return records["received"] + records["recovered"] == sum(records[name] for name in out)


@pytest.mark.parametrize(
    "workers", [{"executor": "inline"}, {"executor": "thread"}, {"executor": "thread", "count": 4}], ids=str
)
async def test_scores_come_out_in_order_and_all_is_accounted_for(workers: dict[str, Any]) -> None:
    sink = sb.MemorySink()
    blocks = [lines(range(start, start + 100)) for start in range(0, 2000, 100)]
    blocks[3] = blocks[3].replace(b"\n", b"\nbroken\n", 7)
    done = pipeline([source(*blocks)], sink, batch=sb.BatchPolicy(max_records=37), workers=sb.Workers(**workers))
    report = await done.run()
    assert [(s["id"], s["score"]) for s in scores(sink)] == [(n, n + 10.0) for n in range(2000)]
    assert report.records == {
        "received": 2007, "recovered": 0, "scored": 2000, "dead_lettered": 7, "dropped": 0, "unacked": 0, "refused": 0,
    }  # fmt: skip
    assert (report.ended, report.error) == ("input_ended", None)
    assert sum(report.batches.values()) == -(-2007 // 37)
    assert report.latency_seconds["p50"] <= report.latency_seconds["p99"] <= report.latency_seconds["max"]


@settings(max_examples=40, deadline=None)
@given(
    raw=st.lists(
        st.sampled_from([line(1), b"broken\n", b"\n", b'{"id": 1}\n', b'{"id":2,"x":[1,1e999]}\n']), max_size=60
    ),
    cut=st.integers(1, 40),
    max_records=st.integers(1, 50),
    queue=st.integers(50, 60),
)
def test_the_identity_holds_for_any_input(raw: list[bytes], cut: int, max_records: int, queue: int) -> None:
    whole = b"".join(raw)
    blocks = [whole[at : at + cut] for at in range(0, len(whole), cut)]

    async def scenario() -> None:
        sink = sb.MemorySink()
        done = pipeline(
            [source(*blocks)],
            sink,
            batch=sb.BatchPolicy(max_records=max_records),
            queue=sb.QueueLimits(max_records=queue),
            workers=sb.Workers(executor="inline"),
            dead_letter=sb.DeadLetterOptions(stop_at=1.0),
        )
        report = await done.run()
        assert balanced(report)
        assert report.records["received"] == sum(each != b"\n" for each in raw)
        assert report.records["scored"] == len(scores(sink)) == raw.count(line(1))
        now = done.snapshot()
        assert report.records["unacked"] == now.memory_used == now.reading.queue.records == 0

    anyio.run(scenario, backend="trio")


async def test_empty_input_ends_at_once_with_nothing() -> None:
    report = await pipeline([source()]).run()
    assert set(report.records.values()) == {0}
    assert set(report.batches.values()) == {0}


class Stream:
    """Blocks that come until the test says so."""

    def __init__(self) -> None:
        self.sender, self.receiver = anyio.create_memory_object_stream[bytes](100)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async with self.receiver:
            async for block in self.receiver:
                yield block

    def source(self, **options: Any) -> sb.MemorySource:
        return sb.MemorySource(self, **options)


async def test_a_stop_flushes_at_once_and_loses_nothing_received() -> None:
    stream, sink = Stream(), sb.MemorySink()
    done = pipeline([stream.source()], sink, batch=sb.BatchPolicy(max_wait=3600))
    with anyio.fail_after(20), stream.sender:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(done.run)
            await stream.sender.send(lines(range(5)))
            while done.snapshot().totals.received < 5:
                await anyio.sleep(0.001)
            done.stop()
    assert done.report is not None
    assert (done.report.ended, done.report.records["scored"], done.report.batches["shutdown"]) == ("stopped", 5, 1)
    assert len(scores(sink)) == 5


async def test_a_stop_before_the_start_takes_nothing_in() -> None:
    stream = Stream()
    done = pipeline([stream.source()])
    done.stop()
    with anyio.fail_after(20), stream.sender, stream.receiver:
        report = await done.run()
    assert (report.ended, report.records["received"]) == ("stopped", 0)


async def test_past_the_drain_deadline_the_rest_is_counted_as_unacked() -> None:
    hanging, stream = threading.Event(), Stream()

    class Hanging:
        def score(self, x: FloatArray) -> FloatArray:
            hanging.wait(30)
            return x[:, 0]

    done = pipeline([stream.source()], model=Hanging(), delivery=sb.Delivery(drain_timeout=0.05))
    try:
        with anyio.fail_after(20), stream.sender:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(done.run)
                await stream.sender.send(lines(range(5)))
                while done.snapshot().totals.received < 5:
                    await anyio.sleep(0.001)
                done.stop()
    finally:
        hanging.set()
    assert done.report is not None
    assert (done.report.ended, done.report.records["unacked"]) == ("stopped", 5)
    assert not done.report.is_complete
    assert balanced(done.report)


async def test_a_batch_that_hangs_holds_the_output_back_while_others_are_scored() -> None:
    gate, sink = threading.Event(), sb.MemorySink()

    class First:
        def score(self, x: FloatArray) -> FloatArray:
            if x[0, 0] == 0:
                gate.wait(20)
            return x[:, 0]

    class Seen(Observer):
        scored = 0

        def batch_scored(self, batch: Batch, outcome: Outcome) -> None:
            self.scored += 1
            if self.scored == 9:
                assert not sink.payloads
                gate.set()

    done = pipeline(
        [source(lines(range(100)))],
        sink,
        First(),
        batch=sb.BatchPolicy(max_records=10),
        workers=sb.Workers(count=2),
        observer=Seen(),
    )
    with anyio.fail_after(20):
        await done.run()
    assert [each["id"] for each in scores(sink)] == list(range(100))


async def test_a_model_that_fails_on_the_whole_first_batch_fails_the_run() -> None:
    class Broken:
        def score(self, x: FloatArray) -> FloatArray:
            raise RuntimeError("no such layer")

    done = pipeline([source(lines(range(10)))], model=Broken())
    with pytest.raises(ModelError, match="no such layer"):
        await done.run()
    assert done.report is not None
    assert done.report.ended == "failed"
    assert "no such layer" in (done.report.error or "")
    assert balanced(done.report)


@pytest.mark.parametrize("count", [998, 4000])
async def test_too_many_dead_records_stop_the_run_even_when_the_last_ones_show_it(count: int) -> None:
    done = pipeline([source(lines(range(2)) + b"broken\n" * count)])
    with pytest.raises(TooManyDeadError, match=r"allowed: 50%"):
        await done.run()


async def test_fewer_than_a_thousand_or_an_endless_source_stop_nothing() -> None:
    report = await pipeline([source(line(0) + b"broken\n" * 900)]).run()
    assert report.records["dead_lettered"] == 900


async def test_an_output_is_closed_when_the_run_is_cancelled_as_it_has_opened() -> None:
    seen = []

    class Cancelling(MemoryWriter):
        async def open(self, header: bytes) -> None:
            await super().open(header)
            seen.append("opened")
            scope.cancel()

        async def close(self) -> None:
            seen.append("closed")

    with anyio.CancelScope() as scope:
        await pipeline([source(lines(range(10)))], writing(Cancelling)).run()
    assert scope.cancelled_caught
    assert seen == ["opened", "closed"]


async def test_a_sink_that_fails_ends_the_run_with_its_error_and_counts_the_rest() -> None:
    class Full(MemoryWriter):
        async def write(self, payload: bytes) -> None:
            raise SinkError("memory", "no room")

    done = pipeline([source(lines(range(10)))], writing(Full))
    with pytest.raises(SinkError, match="no room"):
        await done.run()
    assert done.report is not None
    assert done.report.records["unacked"] == 10
    assert balanced(done.report)


async def test_a_source_that_fails_ends_the_run_with_its_error(tmp_path: Path) -> None:
    with pytest.raises(sb.StreambatchError, match=r"no-such-\*"):
        await pipeline([sb.FileSource(str(tmp_path / "no-such-*"), follow=False)]).run()


async def test_filtered_rows_count_as_dropped() -> None:
    def odd(x: FloatArray) -> tuple[FloatArray, Any]:
        return x, x[:, 0] % 2 == 1

    done = pipeline([source(lines(range(10)))], preprocess=[odd])
    report = await done.run()
    assert (report.records["scored"], report.records["dropped"]) == (5, 5)
    assert done.snapshot().totals.dropped == {"filtered": 5}


async def test_two_sources_keep_their_own_order_and_counts() -> None:
    sink = sb.MemorySink()
    done = pipeline([source(lines(range(50))), source(lines(range(100, 130)) + b"broken\n")], sink)
    await done.run()
    ids = [each["id"] for each in scores(sink)]
    assert [i for i in ids if i < 100] == list(range(50))
    assert [i for i in ids if i >= 100] == list(range(100, 130))
    counts = done.snapshot().sources
    assert {name: (c.scored, c.dead_lettered) for name, c in counts.items()} == {"memory": (50, 0), "memory_2": (30, 1)}


async def test_states_are_told_in_order() -> None:
    class Seen(Observer):
        def __init__(self) -> None:
            self.states: list[PipelineState] = []

        def state_changed(self, state: PipelineState) -> None:
            self.states.append(state)

    seen = Seen()
    await pipeline([source(line(1))], observer=seen).run()
    assert seen.states == ["running", "draining", "stopped"]


async def test_with_a_state_folder_records_count_once_they_are_synced(tmp_path: Path) -> None:
    class Slow(MemoryWriter):
        synced = 0

        async def sync(self) -> int:
            type(self).synced += 1
            return await super().sync()

    done = pipeline([source(lines(range(10)))], writing(Slow), state_dir=tmp_path)
    report = await done.run()
    assert report.records["scored"] == 10
    assert Slow.synced >= 1


async def test_an_async_model_is_awaited() -> None:
    class Remote:
        is_async = True

        async def score(self, x: FloatArray) -> FloatArray:
            await anyio.lowlevel.checkpoint()
            return x[:, 0]

    sink = sb.MemorySink()
    await pipeline([source(lines(range(100)))], sink, Remote(), batch=sb.BatchPolicy(max_records=7)).run()
    assert [each["score"] for each in scores(sink)] == list(range(100))


async def test_cancelling_run_stops_hard_and_reports() -> None:
    stream = Stream()
    done = pipeline([stream.source()])
    with stream.sender, stream.receiver, anyio.move_on_after(0.05):
        await done.run()
    assert done.report is not None
    assert done.report.ended == "stopped"
