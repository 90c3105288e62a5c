"""One pipeline, or one set of options, run several times: in turn, not at once, and in other processes."""

from __future__ import annotations

import json
import multiprocessing
import pickle
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest

import streambatch as sb
from streambatch.connectors.memory.sink import MemoryWriter
from streambatch.core.errors import RunningError, SinkError
from streambatch.core.parts import Site
from streambatch.core.types import FloatArray
from streambatch.durability.store.store import StateStore
from streambatch.pipeline.settings import Settings
from streambatch.testing import LoopClock

pytestmark = pytest.mark.anyio
ON_ASYNCIO = pytest.mark.parametrize("anyio_backend", [("asyncio", {})])
SCHEMA = sb.RecordSchema(id="id", features="x", shape=(2,), dtype="float64")
MODEL = sb.LinearModel(np.array([1.0, 10.0]), 0.0)


def lines(start: int, end: int) -> bytes:
    return b"".join(b'{"id": %d, "x": [%d, 1]}\n' % (number, number) for number in range(start, end))


def twice(x: FloatArray) -> FloatArray:
    return x * 2


def of_files(folder: Path, **changes: Any) -> sb.Pipeline:
    """Return a pipeline over the files of a folder."""
    options: dict[str, Any] = {
        "sources": [sb.FileSource(str(folder / "*.jsonl"), follow=False)],
        "record": SCHEMA,
        "model": MODEL,
        "sink": sb.FileSink(str(folder / "out/scores.jsonl")),
        "state_dir": folder / "state",
    }
    return sb.Pipeline(**(options | changes))


def scored(folder: Path) -> dict[int, float]:
    rows = [json.loads(each) for each in (folder / "out/scores.jsonl").read_bytes().splitlines()]
    found = {row["id"]: row["score"] for row in rows}
    assert len(found) == len(rows), "a record was scored twice"
    return found


@ON_ASYNCIO
async def test_a_pipeline_runs_again_and_goes_on_where_it_was(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines(0, 10))
    pipeline = of_files(tmp_path)
    first = await pipeline.run()
    assert pipeline.report is first
    (tmp_path / "b.jsonl").write_bytes(lines(10, 15))
    second = await pipeline.run()
    assert (first.records["scored"], second.records["scored"]) == (10, 5)
    assert scored(tmp_path) == {n: n + 10.0 for n in range(15)}
    assert first.run != second.run == pipeline.run_id
    assert pipeline.report is second
    assert pipeline.snapshot().run_id == second.run
    assert (pipeline.snapshot().state, pipeline.snapshot().totals.scored) == ("stopped", 5)
    with StateStore.read(tmp_path / "state") as state:
        assert {run.run for run in state.runs()} == {first.run, second.run}


async def test_two_pipelines_of_one_set_of_options_run_at_once() -> None:
    source, sinks = sb.MemorySource([lines(0, 50)]), [sb.MemorySink(), sb.MemorySink()]
    pipelines = [sb.Pipeline(sources=[source], record=SCHEMA, model=MODEL, sink=sink) for sink in sinks]
    async with anyio.create_task_group() as tasks:
        for pipeline in pipelines:
            tasks.start_soon(pipeline.run)
    assert sinks[0].payloads
    assert b"".join(sinks[0].payloads) == b"".join(sinks[1].payloads)


@ON_ASYNCIO
async def test_a_run_that_failed_is_followed_by_one_that_does_not(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines(0, 10))
    broken = True

    def moody(x: FloatArray) -> FloatArray:
        if broken:
            raise RuntimeError("not today")
        return x[:, 0]

    pipeline = of_files(tmp_path, model=moody)
    with pytest.raises(sb.StreambatchError, match="not today"):
        await pipeline.run()
    assert pipeline.report is not None
    assert pipeline.report.ended == "failed"
    broken = False
    report = await pipeline.run()
    assert (report.ended, report.records["scored"]) == ("input_ended", 10)


@ON_ASYNCIO
async def test_steps_with_memory_begin_each_run_where_the_state_says(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines(0, 10))
    with_state = of_files(tmp_path, preprocess=[Counting()])
    await with_state.run()
    (tmp_path / "b.jsonl").write_bytes(lines(10, 12))
    await with_state.run()
    assert [scored(tmp_path)[n] for n in (0, 9, 10, 11)] == [0 + 10, 9 + 10, 10 + 10, 11 + 10]


class Counting:
    """A step that replaces the first feature by how many records came before."""

    name = "counting"
    is_stateful = True

    def initial_state(self) -> int:
        return 0

    def __call__(self, state: int, x: FloatArray, /) -> tuple[int, FloatArray]:
        numbers = np.arange(state, state + len(x), dtype=np.float64)
        return state + len(x), np.column_stack([numbers, x[:, 1]])

    def dump(self, state: int, /) -> bytes:
        return str(state).encode()

    def load(self, data: bytes, /) -> int:
        return int(data)


async def test_a_pipeline_that_runs_is_not_run_a_second_time() -> None:
    async def forever() -> Any:
        yield lines(0, 1)
        await anyio.sleep_forever()

    pipeline = sb.Pipeline(
        name="rides", sources=[sb.MemorySource(forever())], record=SCHEMA, model=MODEL, sink=sb.MemorySink()
    )
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(pipeline.run)
        while not pipeline.snapshot().totals.received:
            await anyio.sleep(0.001)
        running = pipeline.run_id
        with pytest.raises(RunningError, match=f"pipeline rides already runs, as run {running}; wait"):
            await pipeline.run()
        assert pipeline.run_id == running
        pipeline.stop()
    assert pipeline.report is not None
    assert pipeline.report.ended == "stopped"


@ON_ASYNCIO
async def test_a_stop_before_a_run_ends_that_one_alone(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines(0, 10))
    pipeline = of_files(tmp_path)
    pipeline.stop()
    assert (await pipeline.run()).ended == "stopped"
    assert (await pipeline.run()).records["scored"] == 10


@ON_ASYNCIO
async def test_a_reload_holds_for_later_runs(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines(0, 1))
    pipeline = of_files(tmp_path, sources=[sb.FileSource(str(tmp_path / "*.jsonl"), follow=True)])
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(pipeline.run)
        while not pipeline.snapshot().totals.scored:
            await anyio.sleep(0.001)
        other = Settings(model=MODEL, preprocess=[twice])
        pipeline.reload(other, pipeline.transform_of(other))
        pipeline.stop()
    (tmp_path / "b.jsonl").write_bytes(lines(5, 6))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(pipeline.run)
        while pipeline.report is not None or not pipeline.snapshot().totals.scored:
            await anyio.sleep(0.001)
        pipeline.stop()
    assert scored(tmp_path) == {0: 10.0, 5: 30.0}


def run_in_a_process(pickled: bytes, results: Any) -> None:
    pipeline: sb.Pipeline = pickle.loads(pickled)
    report = anyio.run(pipeline.run)
    results.put((report.run, report.records["scored"]))


@pytest.mark.slow
def test_a_pipeline_is_pickled_and_run_in_spawned_processes(tmp_path: Path) -> None:
    runs = set()
    for at, preprocess in enumerate(([twice], [sb.Standardize(mean=[0.0, 0.0], scale=[0.5, 0.5])])):
        folder = tmp_path / str(at)
        folder.mkdir()
        (folder / "a.jsonl").write_bytes(lines(0, 10))
        pipeline = of_files(folder, preprocess=preprocess)
        spawning = multiprocessing.get_context("spawn")
        results = spawning.Queue()
        child = spawning.Process(target=run_in_a_process, args=(pickle.dumps(pipeline), results))
        child.start()
        run, count = results.get(timeout=40)
        child.join(10)
        assert count == 10
        assert scored(folder) == {n: 2 * n + 20.0 for n in range(10)}
        runs |= {run, pipeline.run_id}
    assert len(runs) == 4


@ON_ASYNCIO
async def test_a_pipeline_that_has_run_is_pickled_as_one_that_has_not(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines(0, 10))
    sink = sb.FileSink(str(tmp_path / "out/scores.jsonl"), if_exists="replace")
    pipeline = of_files(tmp_path, state_dir=None, sink=sink)
    await pipeline.run()
    again = pickle.loads(pickle.dumps(pipeline))
    assert (again.report, again.snapshot().state) == (None, "starting")
    assert again.run_id != pipeline.run_id
    assert (await again.run()).records["scored"] == 10


class TestListening:
    """Where sources listen, run by run."""

    def of_sockets(self, *sources: Any, sink: sb.MemorySink | None = None) -> sb.Pipeline:
        return sb.Pipeline(sources=sources, record=SCHEMA, model=MODEL, sink=sink or sb.MemorySink())

    async def test_the_address_is_known_once_the_source_listens(self) -> None:
        pipeline = self.of_sockets(sb.TcpSource("127.0.0.1:0"))
        for _ in range(2):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(pipeline.run)
                with anyio.fail_after(20):
                    address = await pipeline.listening()
                assert address is not None
                host, _, port = address.rpartition(":")
                async with await anyio.connect_tcp(host, int(port)) as client:
                    await client.send(lines(0, 3))
                while pipeline.snapshot().totals.scored < 3:
                    await anyio.sleep(0.001)
                pipeline.stop()
        assert pipeline.report is not None

    async def test_a_source_that_does_not_listen_has_none(self) -> None:
        assert await self.of_sockets(sb.MemorySource([])).listening() is None

    async def test_a_run_that_ends_before_is_waited_for_no_longer(self) -> None:
        class Shut(MemoryWriter):
            async def open(self, header: bytes) -> None:
                raise SinkError("memory", "not today")

        class ShutSink(sb.MemorySink):
            def build(self, site: Site) -> Shut:
                return Shut(self.name, self.output)

        pipeline = self.of_sockets(sb.TcpSource("127.0.0.1:0"), sink=ShutSink())
        found: list[str | None] = []

        async def wait() -> None:
            found.append(await pipeline.listening())

        with anyio.fail_after(20):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(wait)
                await anyio.wait_all_tasks_blocked()
                with pytest.raises(SinkError, match="not today"):
                    await pipeline.run()
        assert found == [None]

    async def test_of_several_sources_one_is_named(self) -> None:
        pipeline = self.of_sockets(sb.MemorySource([], name="a"), sb.MemorySource([], name="b"))
        assert await pipeline.listening("b") is None
        with pytest.raises(sb.StreambatchError, match="source: found none; allowed: one of a, b"):
            await pipeline.listening()
        with pytest.raises(sb.StreambatchError, match="source: found c; allowed: one of a, b"):
            await pipeline.listening("c")


@pytest.mark.virtual_time
async def test_the_time_of_each_run_counts_from_its_start() -> None:
    pipeline = sb.Pipeline(
        sources=[sb.MemorySource([])],
        record=SCHEMA,
        model=MODEL,
        sink=sb.MemorySink(),
        workers=sb.Workers(executor="inline"),
        clock=LoopClock(),
    )
    await anyio.sleep(100)
    assert (await pipeline.run()).seconds < 1
    await anyio.sleep(100)
    assert (await pipeline.run()).seconds < 1
