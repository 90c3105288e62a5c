"""`microbatches` of sources: records reachable, memory bounded, and no task, thread, file or socket left behind."""

import gzip
import socket
import threading
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, assert_type

import anyio
import anyio.lowlevel
import numpy as np
import pyarrow as pa
import pytest

from streambatch.connectors.files.source import FileSource
from streambatch.connectors.memory.source import MemorySource
from streambatch.connectors.sockets.tcp import TcpSource
from streambatch.connectors.sockets.unix import UnixSource
from streambatch.core.budget import Limits
from streambatch.core.chunks import Chunk, Partition
from streambatch.core.errors import OptionError, SourceError
from streambatch.core.intake import Intake
from streambatch.embed.microbatches import SourceBatch, microbatches
from streambatch.microbatch.inbox import QueueLimits
from streambatch.testing import LoopClock
from tests.chunks import chunk_of
from tests.leaks import open_files, tasks_alive

pytestmark = pytest.mark.anyio
LINES = [b'{"n": %d}' % number for number in range(1000)]


@dataclass
class ListSource:
    """Puts chunks, then raises or waits for ever; remembers what was acked."""

    chunks: list[Chunk]
    name: str = "in"
    format: str = "jsonl"
    is_finite: bool = True
    when_full: str = "block"
    error: Exception | None = None
    acks: list[Mapping[str, int]] = field(default_factory=list)

    async def run(self, intake: Intake) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._put, intake)

    async def _put(self, intake: Intake) -> None:
        for chunk in self.chunks:
            intake.memory.take(chunk.size)
            await intake.put(chunk)
        if self.error is not None:
            raise self.error
        if not self.is_finite:
            await anyio.sleep_forever()

    def acked(self, positions: Mapping[str, int]) -> None:
        self.acks.append(positions)

    def revoke(self, partition: str) -> None: ...


async def test_batches_hold_all_records_without_what_frames_them() -> None:
    blocks = [b"\n".join(LINES[:700]) + b"\r\n\n", b"\n".join(LINES[700:])]
    async with microbatches(MemorySource(blocks), max_records=300) as batches:
        got = [batch async for batch in batches]
    assert [(batch.sequence, batch.count, batch.trigger) for batch in got] == [
        (0, 300, "size"), (1, 300, "size"), (2, 300, "size"), (3, 100, "flush"),
    ]  # fmt: skip
    assert [record for batch in got for record in batch.records()] == LINES
    assert list(got[-1].positions().values()) == [len(b"".join(blocks))]
    assert batches.counts == {"received": 1000, "dropped": 0, "refused": 0}


async def test_an_empty_source_makes_no_batch() -> None:
    async with microbatches(MemorySource([])) as batches:
        assert [batch async for batch in batches] == []


async def test_records_that_died_of_their_framing_are_set_apart() -> None:
    source = MemorySource([b"short\n", b"x" * 50 + b"\n", b"last"], max_record_bytes=20)
    async with microbatches(source) as batches:
        batch = await anext(batches)
    assert_type(batch, SourceBatch)
    assert batch.count == 3
    assert batch.records() == [b"short", b"last"]
    [(fault, record)] = batch.faults()
    assert (fault.reason, record) == ("oversize", b"x" * 50)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_rows_of_a_table_are_json_objects_and_record_batches(tmp_path: Path) -> None:
    table = pa.table({"id": [1, 2, 3], "x": np.array([0.5, 1.5, 2.5])})
    with pa.ipc.new_stream(tmp_path / "in.arrow", table.schema) as stream:
        stream.write_table(table)
    async with microbatches(FileSource(str(tmp_path / "in.arrow"), format="arrow"), max_records=2) as batches:
        got = [batch async for batch in batches]
    assert [batch.records() for batch in got] == [[b'{"id":1,"x":0.5}', b'{"id":2,"x":1.5}'], [b'{"id":3,"x":2.5}']]
    rows: Any = [chunk.data() for batch in got for chunk in batch.chunks]
    assert pa.Table.from_batches(rows) == table


async def test_asking_for_the_next_batch_tells_the_source_that_the_one_before_is_done() -> None:
    first, second = Partition("in", "a"), Partition("in", "b")
    source = ListSource([chunk_of([b"1", b"2", b"3"], partition=first), chunk_of([b"4"], partition=second)])
    async with microbatches(source, max_records=2) as batches:
        await anext(batches)
        assert source.acks == []
        await anext(batches)
        assert source.acks == [{"a": 4}]
        with pytest.raises(StopAsyncIteration):
            await anext(batches)
    assert source.acks == [{"a": 4}, {"a": 6, "b": 2}]


@pytest.mark.virtual_time
async def test_cancelled_while_it_waits_it_loses_nothing_and_says_nothing_twice() -> None:
    source = ListSource([chunk_of([b"1", b"2", b"3"], arrived_at=anyio.current_time())], is_finite=False)
    async with microbatches(source, max_records=2, max_wait=0.05, clock=LoopClock()) as batches:
        await anext(batches)
        for _ in range(3):
            with anyio.CancelScope() as scope:
                scope.cancel()
                await anext(batches)
        assert (await anext(batches)).records() == [b"3"]
    assert source.acks == [{"a": 4}]


async def test_it_is_iterated_inside() -> None:
    batches = microbatches(MemorySource([b"1\n2\n3\n"]), max_records=1)
    with pytest.raises(RuntimeError, match="to be iterated inside its `async with`"):
        await anext(batches)
    async with batches:
        await anext(batches)
    with pytest.raises(RuntimeError, match="to be iterated inside its `async with`"):
        await anext(batches)


async def test_what_is_held_is_bounded_while_nobody_asks() -> None:
    given = 0

    async def blocks() -> AsyncIterator[bytes]:
        nonlocal given
        for number in count():
            block = b"%0999d\n" % number * 1000
            given += len(block)
            yield block

    async with microbatches(MemorySource(blocks()), limits=Limits(memory=8 << 20)) as batches:
        for taken in range(30):
            await anyio.wait_all_tasks_blocked()
            assert given - taken * 512 * 1000 <= (8 << 20) + (1 << 20)
            assert (await anext(batches)).count == 512


async def test_what_a_source_drops_for_want_of_room_is_counted() -> None:
    chunks = [chunk_of([b"%d" % number] * 10, base=number * 20) for number in range(5)]
    source = ListSource(chunks, when_full="drop_newest")
    async with microbatches(source, max_records=10, queue=QueueLimits(max_records=20)) as batches:
        await anyio.wait_all_tasks_blocked()
        assert [batch.count async for batch in batches] == [10, 10]
    assert batches.counts == {"received": 50, "dropped": 30, "refused": 0}


async def test_an_error_of_the_source_comes_after_the_batches_before_it_and_as_it_was() -> None:
    source = ListSource([chunk_of([b"1", b"2"])], error=SourceError("in", "torn"))
    got = []
    with pytest.raises(SourceError, match="source in: torn"):
        async with microbatches(source, max_records=9, max_wait=3600) as batches:
            while True:
                got.append(await anext(batches))
    assert [batch.records() for batch in got] == [[b"1", b"2"]]


async def test_left_early_while_the_source_waits_for_room_it_ends_all_the_same() -> None:
    source = ListSource([chunk_of([b"x"] * 100, base=200 * number) for number in range(9)])
    before = tasks_alive()
    with anyio.fail_after(5):
        async with microbatches(source, max_records=10, queue=QueueLimits(max_records=20)) as batches:
            await anext(batches)
            await anyio.wait_all_tasks_blocked()
    assert tasks_alive() == before


@pytest.mark.parametrize("way", ["break", "exception", "cancellation"])
@pytest.mark.parametrize("kind", ["tcp", "unix"])
async def test_left_early_a_listening_source_closes_its_sockets(kind: str, way: str, tmp_path: Path) -> None:
    source = TcpSource("127.0.0.1:0") if kind == "tcp" else UnixSource(tmp_path / "in.sock")
    tasks_before, files_before = tasks_alive(), open_files()
    with anyio.fail_after(10), anyio.CancelScope() as scope:
        try:
            async with microbatches(source, max_records=100) as batches:
                with connected(await batches.listening()) as client:
                    client.sendall(b"\n".join(LINES))
                    async for batch in batches:
                        assert batch.records()[0] == LINES[0]
                        break
                    if way == "exception":
                        raise LookupError
                    if way == "cancellation":
                        scope.cancel()
                        await anyio.lowlevel.checkpoint()
        except LookupError:
            assert way == "exception"
    assert tasks_alive() == tasks_before
    assert open_files() == files_before
    assert list(tmp_path.iterdir()) == []


def connected(address: str | None) -> socket.socket:
    assert address is not None
    host, _, port = address.rpartition(":")
    if not host:
        client = socket.socket(socket.AF_UNIX)
        client.connect(address)
        return client
    return socket.create_connection((host, int(port)))


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_left_early_a_file_source_leaves_no_file_open_and_no_thread_busy(backend: str, tmp_path: Path) -> None:
    plain, packed = tmp_path / "a.jsonl", tmp_path / "b.jsonl.gz"
    plain.write_bytes(b"\n".join(LINES) * 2000)
    packed.write_bytes(gzip.compress(plain.read_bytes(), 1))
    # Trio has no aiofiles: there, files are followed.
    kinds = [(plain, False), (packed, False)] if backend == "asyncio" else []

    async def main() -> None:
        for path, follow in [*kinds, (plain, True)]:
            for batches_wanted in (0, 1, 5):
                await leave_after(FileSource(str(path), follow=follow), batches_wanted)

    async def leave_after(source: FileSource, batches_wanted: int) -> None:
        tasks_before, files_before = tasks_alive(), open_files()
        async with microbatches(source, max_records=10) as batches:
            for _ in range(batches_wanted):
                assert (await anext(batches)).count == 10
        assert tasks_alive() == tasks_before
        assert open_files() == files_before

    threads_before = set(threading.enumerate())
    anyio.run(main, backend=backend)
    # Trio's idle threads wait ten seconds for work, and hold nothing.
    left = [
        thread for thread in set(threading.enumerate()) - threads_before if not thread.name.startswith("Trio thread")
    ]
    for thread in left:
        thread.join(5)  # it was told to end, and may be about to
    assert not any(thread.is_alive() for thread in left)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_glob_that_nothing_matches_is_told_when_a_batch_is_asked_for(tmp_path: Path) -> None:
    async with microbatches(FileSource(str(tmp_path / "*.jsonl"))) as batches:
        with pytest.raises(SourceError, match=r"\*\.jsonl"):
            await anext(batches)


def test_a_batch_that_would_never_fill_is_refused() -> None:
    with pytest.raises(OptionError, match=r"max_bytes: found 9 MiB; allowed: at most limits\.memory, which is 8 MiB"):
        microbatches(MemorySource([]), max_bytes=9 << 20, limits=Limits(memory=8 << 20))
