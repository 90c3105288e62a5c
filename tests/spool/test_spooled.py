"""Sockets with a spool, driven by raw clients: what was answered is durable, comes in once, and stays."""

from __future__ import annotations

import errno
import json
import os
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import anyio
import pytest

from streambatch.connectors.http.source import HttpSource
from streambatch.connectors.sockets.tcp import TcpSource
from streambatch.connectors.sockets.udp import UdpSource
from streambatch.connectors.sockets.unix import UnixSource
from streambatch.core.checkpoints import SavedPartition
from streambatch.core.chunks import Chunk
from streambatch.core.errors import ConfigError, OptionError, SourceError, first_cause
from streambatch.core.parts import Site, Source
from streambatch.spool import disk as spool_disk
from streambatch.spool.intake import KEPT_BYTES
from streambatch.spool.spooled import SpooledReader, reader_of
from streambatch.testing.fakes import CollectingIntake
from tests.connectors.intakes import ManualClock, until

pytestmark = [pytest.mark.anyio, pytest.mark.parametrize("anyio_backend", ["asyncio"])]
MIB = 1 << 20
LINES = b"".join(b'{"id": %d}\n' % at for at in range(1000))


class Answer(NamedTuple):
    status: int
    body: Any


class Gate:
    """Holds every fsync while it is shut, or has it fail."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._open = threading.Event()
        self._open.set()
        self.error: OSError | None = None
        self.waiting = self.count = 0
        self._real = os.fsync
        monkeypatch.setattr(os, "fsync", self._fsync)

    def shut(self) -> None:
        self._open.clear()

    def open(self) -> None:
        self._open.set()

    def _fsync(self, fd: int) -> None:
        self.waiting += 1
        assert self._open.wait(20)
        self.waiting -= 1
        self.count += 1
        if self.error is not None:
            raise self.error
        self._real(fd)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    gate = Gate(monkeypatch)
    yield gate
    gate.open()


def http(**more: Any) -> HttpSource:
    options: dict[str, Any] = {"spool": {"max_bytes": 64 * MIB}, "max_body_bytes": 16 * MIB}
    return HttpSource("127.0.0.1:0", **(options | more))


def tcp(**more: Any) -> TcpSource:
    return TcpSource("127.0.0.1:0", **({"spool": {"max_bytes": 64 * MIB}} | more))


@asynccontextmanager
async def running(
    source: Any, folder: Path, intake: CollectingIntake, saved: SavedPartition | None = None
) -> AsyncIterator[SpooledReader]:
    """Run a source with its spool beside the test, and stop it gracefully at the end."""
    reader = reader_of(source, Site(state_dir=folder))
    assert isinstance(reader, SpooledReader)
    if saved is not None:
        reader.resume({"spool": saved})
    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(reader.run, intake)
            await reader.listening()
            yield reader
            tasks.cancel_scope.cancel()
    assert intake.memory.used == 0


async def post(reader: SpooledReader, body: bytes = b"", *, key: str | None = None, head: str = "") -> Answer:
    """Send a request as a client does, and return what it was answered."""
    async with await connect(reader) as client:
        await client.send(request(body, key=key, head=head))
        return await answer(client)


async def connect(reader: SpooledReader) -> anyio.abc.SocketStream:
    host, _, port = (await reader.listening() or "").rpartition(":")
    return await anyio.connect_tcp(host, int(port))


def request(body: bytes, *, key: str | None = None, head: str = "", length: int | None = None) -> bytes:
    if key is not None:
        head += f"Idempotency-Key: {key}\r\n"
    length = len(body) if length is None else length
    return f"POST /records HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n{head}\r\n".encode() + body


async def answer(client: anyio.abc.SocketStream) -> Answer:
    received = b""
    while not received.endswith(b"}"):
        received += await client.receive()
    head, _, body = received.partition(b"\r\n\r\n")
    return Answer(int(head.split()[1]), json.loads(body))


async def send(reader: SpooledReader, data: bytes) -> None:
    async with await connect(reader) as client:
        await client.send(data)


def records(intake: CollectingIntake) -> bytes:
    return b"".join(bytes(chunk.data()) for chunk in intake.chunks)


def full(error: int = errno.ENOSPC) -> OSError:
    return OSError(error, os.strerror(error))


async def test_what_is_posted_comes_in_as_one_partition(tmp_path: Path) -> None:
    source, intake = http(), CollectingIntake()
    async with running(source, tmp_path, intake) as reader:
        assert reader.is_resumable
        for _ in range(3):
            assert await post(reader, LINES) == (200, {"received": 1000})
        await intake.holds(3000)
        assert records(intake) == 3 * LINES
        assert {str(chunk.partition) for chunk in intake.chunks} == {"http spool"}
        assert intake.chunks[-1].position == 3 * len(LINES)
        assert intake.counts == {"received": 3000, "recovered": 0}
        assert reader.notes() == {"spool": {}}
        assert reader.notes() == {}


async def test_the_answer_comes_after_the_fsync(tmp_path: Path, gate: Gate) -> None:
    source, intake = http(), CollectingIntake()
    async with running(source, tmp_path, intake) as reader:
        gate.shut()
        async with await connect(reader) as client:
            await client.send(request(b"a\n"))
            await until(lambda: gate.waiting == 1)
            with anyio.move_on_after(0.05) as waiting:
                await answer(client)
            assert waiting.cancelled_caught
            assert intake.counts["received"] == 0
            gate.open()
            assert await answer(client) == (200, {"received": 1})


async def test_requests_that_come_meanwhile_share_the_next_fsync(tmp_path: Path, gate: Gate) -> None:
    source, intake = http(), CollectingIntake()
    async with running(source, tmp_path, intake) as reader:
        await post(reader, b"first\n")  # makes the segment, whose name is synced too
        gate.shut()
        async with anyio.create_task_group() as clients:
            clients.start_soon(post, reader, b"second\n")
            await until(lambda: gate.waiting == 1)
            count = gate.count
            for _ in range(20):
                clients.start_soon(post, reader, b"more\n")
            log: Any = reader._log
            await until(lambda: len(log._queue) == 21)
            gate.open()
        assert gate.count == count + 2


async def test_a_failed_fsync_is_never_answered_200(tmp_path: Path, gate: Gate) -> None:
    source, intake = http(), CollectingIntake()
    found: list[Answer] = []
    with pytest.raises(BaseExceptionGroup) as caught:
        async with running(source, tmp_path, intake) as reader:
            await post(reader, b"a\n")
            gate.error = full(errno.EIO)
            found.append(await post(reader, b"b\n"))
            gate.error = None
            await anyio.sleep_forever()
    error = first_cause(caught.value)
    assert isinstance(error, SourceError)
    assert "its spool: what was not yet said to be safe may be lost" in str(error)
    assert [each.status for each in found] == [503]
    assert records(intake) == b"a\n"


@pytest.mark.parametrize("body", [LINES, b"", b"one", b"x" * (3 * KEPT_BYTES) + b"\n" + LINES * 80])
async def test_a_repeated_key_is_answered_alike_and_stored_once(tmp_path: Path, body: bytes) -> None:
    intake = CollectingIntake(memory=32 * MIB)
    count = len(body.splitlines())
    for _ in range(2):
        source = http()
        async with running(source, tmp_path, intake) as reader:
            assert await post(reader, body, key="k-1") == (200, {"received": count})
            assert await post(reader, body, key="k-1") == (200, {"received": count})
    assert records(intake).startswith(body)
    again = CollectingIntake(memory=32 * MIB)
    source = http()
    position = intake.chunks[-1].position if count else 0
    async with running(
        source, tmp_path, again, SavedPartition(position=position, read_to=position, notes={})
    ) as reader:
        assert await post(reader, body, key="k-1") == (200, {"received": count})
        assert await post(reader, b"last\n") == (200, {"received": 1})
        await again.holds(1)
    assert records(again) == b"last\n"


async def test_a_repeated_key_waits_for_the_first(tmp_path: Path, gate: Gate) -> None:
    source, intake = http(), CollectingIntake()
    found: list[Answer] = []

    async def client() -> None:
        found.append(await post(reader, b"a\nb\n", key="same"))

    async with running(source, tmp_path, intake) as reader:
        gate.shut()
        async with anyio.create_task_group() as clients:
            for _ in range(5):
                clients.start_soon(client)
            await until(lambda: gate.waiting == 1)
            gate.open()
        await intake.holds(2)
    assert found == [(200, {"received": 2})] * 5
    assert records(intake) == b"a\nb\n"


async def test_a_key_whose_first_request_broke_off_is_free_again(tmp_path: Path) -> None:
    source, intake = http(), CollectingIntake()
    async with running(source, tmp_path, intake) as reader:
        async with await connect(reader) as client:
            await client.send(request(b"a\nb\n", key="k", length=100))
            async with anyio.create_task_group() as clients:
                clients.start_soon(post, reader)
        assert await post(reader, b"c\n", key="k") == (200, {"received": 1})
        await intake.holds(1)
    assert records(intake) == b"c\n"


async def test_a_key_that_comes_back_with_other_records_is_refused(tmp_path: Path) -> None:
    source, intake = http(), CollectingIntake()
    async with running(source, tmp_path, intake) as reader:
        await post(reader, b"a\n", key="k")
        refused = await post(reader, b"b\n", key="k")
        assert refused.status == 422
        assert refused.body == {"received": 0, "error": "the idempotency key was used for other records before"}


async def test_a_key_that_comes_back_with_other_columns_is_refused(tmp_path: Path) -> None:
    source, intake = http(format="csv"), CollectingIntake()
    async with running(source, tmp_path, intake) as reader:
        for body, status in ((b"a,b\n1,2\n", 200), (b"b,a\n1,2\n", 422), (b"a,b\n1,2\n", 200)):
            assert (await post(reader, body, key="k")).status == status
        await intake.holds(1)
    assert records(intake) == b"1,2\n"


@pytest.mark.parametrize("key", ["", "x" * 256, "\x7f", "\xe9"])
async def test_a_key_that_is_none_is_refused(tmp_path: Path, key: str) -> None:
    source, intake = http(), CollectingIntake()
    async with running(source, tmp_path, intake) as reader:
        async with await connect(reader) as client:
            head = b"POST /records HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nIdempotency-Key: "
            await client.send(head + key.encode("latin-1") + b"\r\n\r\na\n")
            received = await client.receive()
        assert received.startswith(b"HTTP/1.1 400"), received


async def test_a_key_is_forgotten_after_the_window(tmp_path: Path) -> None:
    clock = ManualClock()
    intake = CollectingIntake(clock=clock)
    source = http(dedupe_window="1h")
    async with running(source, tmp_path, intake) as reader:
        for moved in (0, 3599, 3601):
            clock.now = 1000.0 + moved
            assert (await post(reader, b"a\n", key="k")).status == 200
        await intake.holds(2)
    assert records(intake) == b"a\na\n"


async def test_a_request_counts_whole_or_not_at_all(tmp_path: Path) -> None:
    source, intake = http(), CollectingIntake(memory=32 * MIB)
    large = LINES * 100
    async with running(source, tmp_path, intake) as reader:
        for body in (b"a\nb\n", large):
            async with await connect(reader) as client:
                await client.send(request(body, length=len(body) + 9))
            tail = b"5\r\nc\nd\n\r\nno chunk\r\n"
            async with await connect(reader) as client:
                head = b"POST /records HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
                await client.send(head + b"%x\r\n" % len(body) + body + b"\r\n" + tail)
                assert (await answer(client)).body["received"] == 0
        assert await post(reader, b"whole\n") == (200, {"received": 1})
        await intake.holds(1)
    assert records(intake) == b"whole\n"


@pytest.mark.slow
async def test_a_body_larger_than_memory_comes_in_whole(tmp_path: Path) -> None:
    source, intake = http(), CollectingIntake()
    body = LINES * 1000
    assert len(body) > intake.memory.capacity
    async with running(source, tmp_path, intake) as reader:
        assert await post(reader, body) == (200, {"received": 1_000_000})
        await intake.holds(1_000_000)
        assert intake.memory.peak < intake.memory.capacity + MIB
    assert records(intake) == body


async def test_dead_records_and_columns_survive(tmp_path: Path) -> None:
    stalled = CollectingIntake()
    stalled.stall()
    source = http(format="csv", max_record_bytes=1000)
    async with running(source, tmp_path, stalled) as reader:
        body = b"a,b\n1,2\n" + b"x" * 5000 + b"\n3,4\n"
        assert await post(reader, body) == (200, {"received": 3})
        stalled.go_on()
    intake = CollectingIntake()
    source = http(format="csv", max_record_bytes=1000)
    async with running(source, tmp_path, intake) as reader:
        await intake.holds(3)
    assert [(chunk.columns, bytes(chunk.data())) for chunk in intake.chunks if chunk.fault is None] == [
        (("a", "b"), b"1,2\n"),
        (("a", "b"), b"3,4\n"),
    ]
    (fault,) = [chunk.fault for chunk in intake.chunks if chunk.fault is not None]
    assert (fault.reason, fault.truncated) == ("oversize", False)


async def test_a_request_that_would_never_fit_is_not_asked_to_come_again(tmp_path: Path) -> None:
    """Its body is no larger than it may be, but short records take more room in the spool than their bytes."""
    source, intake = http(spool={"max_bytes": 4 * MIB}, max_body_bytes=MIB, max_record_bytes=MIB), CollectingIntake()
    async with running(source, tmp_path, intake) as reader:
        found = await post(reader, b"1\n" * 400_000)
        assert found.status == 413
        assert "more than 1 MiB of the spool" in found.body["error"]
        assert (await post(reader, b"1\n")).status == 200
        await intake.holds(1)


async def test_a_full_spool_is_answered_before_the_first_block_and_drops_nothing(tmp_path: Path) -> None:
    source, intake = http(spool={"max_bytes": 4 * MIB}, max_body_bytes=MIB, max_record_bytes=MIB), CollectingIntake()
    intake.stall()
    body = LINES * 10
    async with running(source, tmp_path, intake) as reader:
        taken = 0
        while (found := await post(reader, body)).status == 200:
            taken += 1
        assert found == (429, {"received": 0, "error": "the queue is full"})
        assert 15 < taken < 30
        assert reader.spool.size <= 4 * MIB
        intake.go_on()
        await intake.holds(taken * 10_000)
        reader.acked({"spool": intake.chunks[-1].position})
        await until(lambda: reader.spool.size < 3 * MIB)
        assert (await post(reader, body)).status == 200
        await intake.holds((taken + 1) * 10_000)
        assert records(intake) == body * (taken + 1)
        assert intake.refusals == {"full": 1}


async def test_a_full_spool_keeps_a_socket_waiting(tmp_path: Path) -> None:
    source, intake = tcp(spool={"max_bytes": 4 * MIB}, max_record_bytes=MIB), CollectingIntake()
    intake.stall()
    body = LINES * 1000
    async with running(source, tmp_path, intake) as reader:
        async with anyio.create_task_group() as clients:
            clients.start_soon(send, reader, body)
            await until(lambda: reader.spool.size > 3 * MIB)
            assert reader.spool.size <= 4 * MIB
            intake.go_on()
            while intake.count < 1_000_000:
                await anyio.sleep(0.001)
                if intake.chunks:
                    reader.acked({"spool": intake.chunks[-1].position})
                assert reader.spool.size <= 4 * MIB
    assert records(intake) == body
    assert intake.observer.named("source_blocked")


async def test_a_full_disk_holds_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    is_full, real = [False], os.pwrite

    def pwrite(fd: int, data: Any, offset: int) -> int:
        if is_full[0]:
            real(fd, bytes(data)[: len(data) // 2], offset)
            raise full()
        return real(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", pwrite)
    source, intake = http(), CollectingIntake()
    found: list[Answer] = []

    async def client() -> None:
        found.append(await post(reader, b"second\n"))

    async with running(source, tmp_path, intake) as reader:
        await post(reader, b"first\n")
        is_full[0] = True
        async with anyio.create_task_group() as clients:
            clients.start_soon(client)
            await until(lambda: reader.spool.outage is not None)
            assert (await post(reader, b"refused\n")).status == 429
            assert found == []
            is_full[0] = False
        assert found == [(200, {"received": 1})]
        assert reader.spool.outage is None
        await intake.holds(2)
    assert records(intake) == b"first\nsecond\n"
    assert len(intake.observer.named("source_failed")) == 1
    assert len(intake.observer.named("source_recovered")) == 1


async def test_a_stop_does_not_wait_long_for_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def pwrite(fd: int, data: Any, offset: int) -> int:
        raise full()

    monkeypatch.setattr(os, "pwrite", pwrite)
    monkeypatch.setattr(spool_disk, "LAST_SECONDS", 0.05)
    source, intake = tcp(), CollectingIntake()
    with pytest.raises(BaseExceptionGroup) as caught:
        async with running(source, tmp_path, intake) as reader:
            await send(reader, LINES)
            await until(lambda: reader.spool.outage is not None)
    assert "No space left on device" in str(first_cause(caught.value))
    assert intake.counts["received"] == 0
    assert intake.memory.used == 0


async def test_a_client_whose_request_a_full_disk_did_not_take_by_the_stop_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pwrite(fd: int, data: Any, offset: int) -> int:
        raise full()

    monkeypatch.setattr(os, "pwrite", pwrite)
    monkeypatch.setattr(spool_disk, "LAST_SECONDS", 0.05)
    source, intake = http(), CollectingIntake()
    found: list[Answer] = []

    async def client() -> None:
        found.append(await post(reader, LINES, key="k"))

    async with anyio.create_task_group() as clients:
        async with running(source, tmp_path, intake) as reader:
            clients.start_soon(client)
            await until(lambda: reader.spool.outage is not None)
    wanted = {"received": 0, "error": "the spool can't be written: No space left on device"}
    assert found == [(429, wanted)]
    assert intake.counts["received"] == 0
    monkeypatch.undo()
    source, again = http(), CollectingIntake()
    async with running(source, tmp_path, again) as reader:
        assert await post(reader, b"a\n", key="k") == (200, {"received": 1})
        await again.holds(1)
    assert records(again) == b"a\n"


async def test_a_stop_stores_and_answers_a_request_that_waits_for_room(tmp_path: Path) -> None:
    source, intake = http(spool={"max_bytes": 4 * MIB}, max_body_bytes=MIB, max_record_bytes=MIB), CollectingIntake()
    body, found, told = LINES * 40, list[Answer](), anyio.Event()

    async def client() -> None:
        while not told.is_set():
            found.append(await post(reader, body))

    async with anyio.create_task_group() as clients:
        async with running(source, tmp_path, intake) as reader:
            clients.start_soon(client)
            await until(lambda: waits_for_room(reader._log))
            before = len(found)
            told.set()
    assert found == [(200, {"received": 40_000})] * (before + 1)
    again = CollectingIntake()
    async with running(http(), tmp_path, again):
        await again.holds(40_000 * len(found))
    assert records(again) == body * len(found)


async def test_a_stop_stores_what_a_socket_brought_that_waits_for_room(tmp_path: Path) -> None:
    source, intake = tcp(spool={"max_bytes": 4 * MIB}, max_record_bytes=MIB), CollectingIntake()
    body = LINES * 2000

    async def client() -> None:
        with suppress(anyio.BrokenResourceError):
            await send(reader, body)

    async with anyio.create_task_group() as clients:
        async with running(source, tmp_path, intake) as reader:
            clients.start_soon(client)
            log: Any = reader._log
            await until(lambda: waits_for_room(log) and log._queue.is_full)
            size_before = reader.spool.size
    received = intake.counts["received"]
    assert size_before + log._queue._held_max <= reader.spool.size
    again = CollectingIntake()
    async with running(tcp(), tmp_path, again):
        await again.holds(received)
    assert body.startswith(records(again))
    assert again.count == received


def waits_for_room(log: Any) -> bool:
    """Tell whether what is next to be written does not fit."""
    return len(log._queue) > 0 and not log.space.fits(log._queue.first.block_bytes)


async def test_what_was_not_acked_comes_again(tmp_path: Path) -> None:
    first, source = CollectingIntake(), tcp()
    async with running(source, tmp_path, first) as reader:
        await send(reader, LINES)
        await first.holds(1000)
    acked, read_to = 100, 100 + 50 * 11
    again, source = CollectingIntake(), tcp()
    async with running(source, tmp_path, again, SavedPartition(position=acked, read_to=read_to, notes={})) as reader:
        await send(reader, b"new\n")
        await again.holds(len(LINES[acked:].splitlines()) + 1)
    assert records(again) == LINES[acked:] + b"new\n"
    assert again.counts["recovered"] == len(LINES[acked:read_to].splitlines())
    assert again.counts["received"] == len(LINES[read_to:].splitlines()) + 1
    assert again.chunks[0].position_of(0) > acked


async def test_a_stop_leaves_in_the_spool_what_the_pipeline_has_no_room_for(tmp_path: Path) -> None:
    body = LINES * 2000
    source, intake = tcp(), CollectingIntake()
    intake.stall()
    async with running(source, tmp_path, intake) as reader:
        await send(reader, body)
        await until(lambda: intake.counts["received"] == 2_000_000)
        intake.go_on()
    left = reader.spool.backlog_records
    assert left > 0
    assert intake.count + left == 2_000_000
    source, again = tcp(), CollectingIntake()
    position = intake.chunks[-1].position
    async with running(
        source, tmp_path, again, SavedPartition(position=position, read_to=len(body), notes={})
    ) as reader:
        await again.holds(left)
        assert reader.spool.backlog_records == 0
    assert records(intake) + records(again) == body
    assert again.counts == {"received": 0, "recovered": left}
    assert again.memory.peak <= again.memory.capacity


async def test_damage_costs_its_segment_and_is_counted(tmp_path: Path) -> None:
    body = LINES * 1000
    source, intake = tcp(), CollectingIntake()
    async with running(source, tmp_path, intake) as reader:
        await send(reader, body)
        await intake.holds(1_000_000)
    segments = sorted((tmp_path / "spool" / "tcp").glob("*.seg"))
    assert len(segments) > 1
    content = bytearray(segments[0].read_bytes())
    content[len(content) // 2] ^= 1
    segments[0].write_bytes(content)
    source, again = tcp(), CollectingIntake()
    async with running(source, tmp_path, again) as reader:
        await until(lambda: reader.spool.backlog_records == 0)
        status = reader.spool
    assert status.corrupt_segments == 1
    found = records(again)
    begins = next(at for at, chunk in enumerate(again.chunks) if chunk.base >= int(segments[1].stem))
    before = sum(chunk.size for chunk in again.chunks[:begins])
    assert body.startswith(found[:before])
    assert body.endswith(found[before:])
    assert len(found) > len(body) // 2
    assert (tmp_path / "spool" / "tcp" / f"{segments[0].name}.corrupt").exists()


async def test_damage_that_is_found_while_it_runs_is_passed_over(tmp_path: Path) -> None:
    body = LINES * 2000
    source, intake = tcp(), CollectingIntake()
    intake.stall()
    async with running(source, tmp_path, intake) as reader:
        await send(reader, body)
        await until(lambda: intake.counts["received"] == 2_000_000)
        segments = sorted((tmp_path / "spool" / "tcp").glob("*.seg"))
        with segments[1].open("r+b") as file:
            file.seek(segments[1].stat().st_size // 2)
            file.write(b"damage")
        intake.go_on()
        await until(lambda: reader.spool.backlog_records == 0)
        assert reader.spool.corrupt_segments == 1
        lost = intake.lost_records
        assert 0 < lost < 1_000_000
        await intake.holds(2_000_000 - lost)
        await send(reader, b"last\n")
        await intake.holds(2_000_001 - lost)
    assert intake.chunks[-1].data() == b"last\n"


async def test_when_the_pipeline_gives_up_so_does_the_source(tmp_path: Path) -> None:
    class Broken(CollectingIntake):
        async def enqueue(self, chunk: Chunk) -> None:
            self.memory.give(chunk.size)
            raise RuntimeError("given up")

    source, intake = http(), Broken()
    with pytest.raises(BaseExceptionGroup) as caught:
        async with running(source, tmp_path, intake) as reader:
            with suppress(anyio.EndOfStream, OSError):
                await post(reader, LINES)
            await anyio.sleep_forever()
    assert str(first_cause(caught.value)) == "given up"
    assert intake.memory.used == 0


@pytest.mark.parametrize("kind", ["udp", "unix"])
async def test_other_sockets_have_one_too(tmp_path: Path, kind: str) -> None:
    options: Any = {"spool": {"max_bytes": 64 * MIB}}
    path = Path(f"/tmp/sb-{os.getpid()}.sock")
    source: Any = UdpSource("127.0.0.1:0", **options) if kind == "udp" else UnixSource(path, **options)
    intake = CollectingIntake()
    async with running(source, tmp_path, intake) as reader:
        if kind == "udp":
            host, _, port = (reader.address or "").rpartition(":")
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.sendto(b"a\nb\n", (host, int(port)))
        else:
            async with await anyio.connect_unix(reader.address or "") as client:
                await client.send(b"a\nb\n")
        await intake.holds(2)
    assert records(intake) == b"a\nb\n"
    again = CollectingIntake()
    async with running(source, tmp_path, again) as reader:
        await again.holds(2)


Make = Callable[..., Source]


@pytest.mark.parametrize(
    ("make", "options", "problem"),
    [
        (tcp, {"reply": True}, "reply: found true"),
        (tcp, {"when_full": "drop_newest"}, "when_full: found drop_newest"),
        (tcp, {"spool": {"max_bytes": 1000}}, "spool.max_bytes: found 1000"),
        (tcp, {"spool": {}}, "spool.max_bytes: found nothing"),
        (tcp, {"spool": {"max_bytes": MIB}}, "spool.max_bytes: found 1 MiB; allowed: at least 4 MiB, for max_record"),
        (http, {"max_body_bytes": 17 * MIB}, "spool.max_bytes: found 64 MiB; allowed: at least 68 MiB, for max_body"),
        (http, {"dedupe_window": "1h", "spool": None}, "dedupe_window: found 3600 s, and no spool"),
    ],
)
async def test_options_that_do_not_go_together(make: Make, options: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make(**options)
    assert problem in str(caught.value)


async def test_a_spool_needs_a_folder(tmp_path: Path) -> None:
    plain = TcpSource("127.0.0.1:0")
    for state_dir in (None, tmp_path):
        assert reader_of(plain, Site(state_dir=state_dir)).spool is None
    with pytest.raises(OptionError, match="state_dir"):
        reader_of(tcp(), Site())
