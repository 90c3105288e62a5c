"""Many clients on one source, through real sockets: nothing lost or mixed up, everything bounded."""

import os
import resource
import socket
import struct
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from anyio.abc import SocketStream
from pydantic import TypeAdapter

from streambatch.codecs.formats import framing_for_format
from streambatch.connectors.sockets import serving as serving_module
from streambatch.connectors.sockets.tcp import TcpSource
from streambatch.core.chunks import Chunk
from streambatch.core.codec import Framer, FramerStart, Framing
from streambatch.core.errors import ConfigError
from streambatch.core.leases import ALLOWANCE_MAX, leases_of
from streambatch.core.parts import Site
from tests.connectors.intakes import KeepingIntake, ManualClock, until

MIB = 1 << 20
pytestmark = pytest.mark.anyio


@asynccontextmanager
async def serving(source: TcpSource, intake: KeepingIntake) -> AsyncIterator[int]:
    """Run a reader of a source beside the test, stop it at the end. Yields its port."""
    reader = source.build(Site())
    with anyio.fail_after(20):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(reader.run, intake)
            yield int((await reader.listening()).rpartition(":")[2])
            tasks.cancel_scope.cancel()
    assert intake.budget.used == 0
    assert intake.seen.opened == intake.seen.closed
    assert reader.address is None


async def connect(port: int) -> SocketStream:
    return await anyio.connect_tcp("127.0.0.1", port)


async def send(port: int, *pieces: bytes) -> None:
    """Send pieces on a connection of its own, and wait until the server has closed it too."""
    async with await connect(port) as client:
        for piece in pieces:
            await client.send(piece)
            await anyio.lowlevel.checkpoint()
        await client.send_eof()
        assert await is_closed(client)


async def is_closed(client: SocketStream) -> bool:
    try:
        await client.receive()
    except (anyio.EndOfStream, anyio.BrokenResourceError):
        return True
    return False


async def refuses(port: int) -> None:
    """Wait until nobody listens on the port."""
    while True:
        try:
            client = await connect(port)
        except OSError:
            return
        await client.aclose()


def reset(client: SocketStream) -> None:
    """Drop a connection the rude way."""
    raw = client.extra_attributes[anyio.abc.SocketAttribute.raw_socket]()
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


async def test_many_clients_in_pieces_are_not_mixed_up() -> None:
    intake = KeepingIntake()
    wanted = [[b'{"client":%d,"n":%d}\n' % (c, n) for n in range(100)] for c in range(40)]
    async with serving(TcpSource("127.0.0.1:0"), intake) as port, anyio.create_task_group() as clients:
        for lines in wanted:
            data = b"".join(lines)
            clients.start_soon(send, port, *(data[i : i + 37] for i in range(0, len(data), 37)))
    found = intake.by_partition()
    assert sorted(found.values()) == sorted(wanted)
    assert set(found) == {f"run-{n}" for n in range(1, 41)}
    assert intake.seen.opened == 40


async def test_positions_count_each_connection_from_its_start() -> None:
    intake = KeepingIntake()
    async with serving(TcpSource("127.0.0.1:0"), intake) as port:
        await send(port, b"one\n", b"two\nthr")
        await send(port, b"four\n")
    ends = {chunk.partition.name: chunk.position for chunk in intake.chunks}
    assert ends == {"run-1": 11, "run-2": 5}


@pytest.mark.parametrize(
    ("data", "records"),
    [
        (b"", []),
        (b"one", [b"one"]),
        (b"one\ntwo", [b"one\n", b"two"]),
        (b"one\r\ntwo\r\n", [b"one\r\n", b"two\r\n"]),
        (b"\xff\xfe\n", [b"\xff\xfe\n"]),
    ],
)
async def test_a_clients_end_completes_its_last_record(data: bytes, records: list[bytes]) -> None:
    intake = KeepingIntake()
    async with serving(TcpSource("127.0.0.1:0"), intake) as port:
        await send(port, data)
    assert [record.rstrip(b"\r\n") for record in intake.records()] == [record.rstrip(b"\r\n") for record in records]
    assert intake.faults() == []


async def test_the_half_record_of_a_client_that_drops_the_connection_is_dead() -> None:
    intake = KeepingIntake()
    async with serving(TcpSource("127.0.0.1:0"), intake) as port:
        async with await connect(port) as client:
            await client.send(b"whole\nhal")
            await intake.holds(1)
            reset(client)
        await intake.holds(2)
    assert intake.records() == [b"whole\n"]
    assert intake.faults() == [("cut_off", b"hal")]


async def test_half_a_length_prefixed_record_is_dead_also_when_the_client_closes() -> None:
    intake = KeepingIntake()
    async with serving(TcpSource("127.0.0.1:0", format="length_prefixed"), intake) as port:
        await send(port, struct.pack(">I", 3) + b"abc" + struct.pack(">I", 9) + b"de")
    assert len(intake.records()) == 1
    assert [reason for reason, _ in intake.faults()] == ["cut_off"]


async def test_a_record_over_the_limit_dies_and_the_next_one_lives() -> None:
    intake = KeepingIntake(memory=8 * MIB)
    async with serving(TcpSource("127.0.0.1:0", max_record_bytes=64 << 10), intake) as port:
        await send(port, b"x" * (10 * MIB) + b"\n", b"after\n")
    assert intake.records() == [b"after\n"]
    assert [reason for reason, _ in intake.faults()] == ["oversize"]
    assert intake.budget.peak <= 8 * MIB


async def test_connections_over_the_limit_are_sent_away() -> None:
    intake = KeepingIntake()
    async with (
        serving(TcpSource("127.0.0.1:0", max_connections=2), intake) as port,
        await connect(port) as one,
        await connect(port) as two,
    ):
        await one.send(b"1\n")
        await two.send(b"2\n")
        await intake.holds(2)
        async with await connect(port) as three:
            assert await is_closed(three)
        assert intake.seen.rejected == {"limit": 1}
        await one.send_eof()
        assert await is_closed(one)
        await send(port, b"4\n")
    assert intake.records() == [b"1\n", b"2\n", b"4\n"]
    assert intake.seen.opened == 3


async def test_a_silent_client_is_cut_off() -> None:
    intake = KeepingIntake()
    source = TcpSource("127.0.0.1:0", idle_timeout=0.05)
    async with serving(source, intake) as port, await connect(port) as client:
        await client.send(b"whole\nhal")
        assert await is_closed(client)
    assert intake.seen.rejected == {"timeout": 1}
    assert intake.faults() == [("cut_off", b"hal")]


async def test_silence_is_counted_from_the_last_byte_of_each_client() -> None:
    clock = ManualClock()
    intake = KeepingIntake(clock=clock)
    async with (
        serving(TcpSource("127.0.0.1:0", idle_timeout=60), intake) as port,
        await connect(port) as silent,
        await connect(port) as talking,
    ):
        await silent.send(b"s1\n")
        await intake.holds(1)
        await talking.send(b"t1\n")
        await intake.holds(2)
        clock.now += 40
        await talking.send(b"t2\n")
        await intake.holds(3)
        clock.now += 40
        await talking.send(b"t3\n")
        assert await is_closed(silent)
        await talking.send(b"t4\n")
        await intake.holds(5)
    assert intake.seen.rejected == {"timeout": 1}


async def test_time_in_which_nothing_is_taken_is_not_a_clients_silence() -> None:
    clock = ManualClock()
    intake = KeepingIntake(clock=clock)
    async with (
        serving(TcpSource("127.0.0.1:0", idle_timeout=60), intake) as port,
        await connect(port) as one,
        await connect(port) as two,
    ):
        intake.stall()
        await one.send(b"1\n")
        await intake.is_waited_for()
        await two.send(b"2\n")
        clock.now += 1000
        intake.go_on()
        await intake.holds(2)
        await one.send(b"3\n")
        await two.send(b"4\n")
        await intake.holds(4)
    assert not intake.seen.rejected


async def test_halves_of_large_records_stay_within_memory_and_all_arrive() -> None:
    intake = KeepingIntake(memory=8 * MIB)
    leases = leases_of(intake.memory)
    record = b"x" * (512 << 10) + b"\n"
    half = len(record) // 2
    halves_sent = 0
    go_on = anyio.Event()

    async def client(port: int) -> None:
        nonlocal halves_sent
        async with await connect(port) as stream:
            await stream.send(record[:half])
            halves_sent += 1
            await go_on.wait()
            await stream.send(record[half:])
            await stream.send_eof()
            await is_closed(stream)

    async with serving(TcpSource("127.0.0.1:0"), intake) as port, anyio.create_task_group() as clients:
        for _ in range(40):
            clients.start_soon(client, port)
        await until(lambda: halves_sent == 40 and leases.are_wanted and intake.budget.used >= 2 * half)
        # Two leases of 1 MiB hold half a record each; the others hold no more than their allowance.
        assert intake.budget.used <= 2 * half + 40 * leases.allowance
        assert intake.count == 0
        go_on.set()
    assert intake.records() == [record] * 40
    assert intake.budget.peak <= 8 * MIB
    assert intake.seen.blocked > 0


async def test_who_waits_for_a_grant_gets_it_when_its_holders_fall_silent() -> None:
    intake = KeepingIntake(memory=8 * MIB)
    record = b"x" * (512 << 10) + b"\n"
    async with (
        serving(TcpSource("127.0.0.1:0", idle_timeout=0.2), intake) as port,
        await connect(port) as one,
        await connect(port) as two,
    ):
        for holder in (one, two):
            await holder.send(record[:-1])
        await until(lambda: intake.budget.used == 2 * len(record) - 2)
        await send(port, record)
    assert intake.records() == [record]
    assert [reason for reason, _ in intake.faults()] == ["cut_off", "cut_off"]


async def test_a_grant_holder_that_only_streams_lets_others_have_it() -> None:
    intake = KeepingIntake(memory=8 * MIB)
    record = b"x" * (512 << 10) + b"\n"
    async with serving(TcpSource("127.0.0.1:0"), intake) as port, anyio.create_task_group() as clients:

        async def stream_small() -> None:
            async with await connect(port) as stream:
                while True:
                    await stream.send(b"y" * 99 + b"\n" + (b"z" * 99 + b"\n") * 5000)

        for _ in range(3):
            clients.start_soon(stream_small)
        await intake.holds(1000)
        for _ in range(3):
            await send(port, record)
        clients.cancel_scope.cancel()
    assert [found for found in intake.records() if len(found) > 100] == [record] * 3


async def test_a_fast_client_is_read_in_large_blocks() -> None:
    intake = KeepingIntake(memory=8 * MIB)
    async with serving(TcpSource("127.0.0.1:0"), intake) as port:
        await send(port, b"0123456\n" * (4 * MIB // 8))
    assert intake.count == 4 * MIB // 8
    assert max(chunk.size for chunk in intake.chunks) > ALLOWANCE_MAX


async def test_a_fast_client_does_not_keep_others_waiting() -> None:
    intake = KeepingIntake()
    line = b"y" * 4095 + b"\n"
    async with serving(TcpSource("127.0.0.1:0"), intake) as port, anyio.create_task_group() as clients:

        async def flood() -> None:
            async with await connect(port) as stream:
                while True:
                    await stream.send(line * 100)

        clients.start_soon(flood)
        await intake.holds(100)
        for n in range(10):
            await send(port, b"%d\n" % n)
        clients.cancel_scope.cancel()
    flooded = intake.by_partition().pop("run-1")
    assert set(flooded) <= {line, line[: len(flooded[-1])]}
    assert intake.seen.opened == 11
    assert sorted(r for r in intake.records() if len(r) < 5) == [b"%d\n" % n for n in range(10)]


class CountingFraming(Framing):
    """Counts the bytes that framers are fed."""

    def __init__(self, framing: Framing) -> None:
        self.framing, self.name = framing, framing.name
        self.size = 0
        self.framers: list[Framer] = []

    def framer_from(self, start: FramerStart) -> Framer:
        framer = self.framing.framer_from(start)
        feed = framer.feed

        def counted(block: bytes, now: float) -> list[Chunk]:
            self.size += len(block)
            return feed(block, now)

        framer.feed = counted  # type: ignore[method-assign]
        self.framers.append(framer)
        return framer

    def strip(self, raw: memoryview) -> bytes:
        return self.framing.strip(raw)


@pytest.mark.parametrize("is_stalled", [False, True])
async def test_a_stop_puts_all_that_was_read(monkeypatch: pytest.MonkeyPatch, is_stalled: bool) -> None:
    framing = CountingFraming(framing_for_format("jsonl"))
    monkeypatch.setattr(serving_module, "framing_for_format", lambda format: framing)
    intake = KeepingIntake()
    line = b'{"id": 1, "features": [1, 2, 3]}\n'
    ended = anyio.Event()

    async def client(port: int) -> None:
        try:
            async with await connect(port) as stream:
                while True:
                    await stream.send(line * 1000)
        except (OSError, anyio.BrokenResourceError):
            pass

    async with anyio.create_task_group() as tasks:
        source = TcpSource("127.0.0.1:0").build(Site())

        async def run(task_status: anyio.abc.TaskStatus[anyio.CancelScope]) -> None:
            with anyio.CancelScope() as scope:
                task_status.started(scope)
                await source.run(intake)
            ended.set()

        stop: anyio.CancelScope = await tasks.start(run)
        port = int((await source.listening()).rpartition(":")[2])
        for _ in range(50):
            tasks.start_soon(client, port)
        await intake.holds(20_000)
        if is_stalled:
            intake.stall()
            await intake.is_waited_for()
        stop.cancel()
        if is_stalled:
            await refuses(port)
            assert not ended.is_set()
            intake.go_on()
        await ended.wait()
        tasks.cancel_scope.cancel()
    left = sum(framer.pending for framer in framing.framers)
    assert framing.size == sum(chunk.size for chunk in intake.chunks) + left
    assert intake.faults() == []
    assert intake.budget.used == 0
    assert set(intake.records()) == {line}


@contextmanager
def no_free_descriptor() -> Iterator[None]:
    """Use up every descriptor that this process may have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = [os.dup(2)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (taken[0] + 1, hard))
    try:
        with suppress(OSError):
            while True:
                taken.append(os.dup(2))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for descriptor in taken:
            os.close(descriptor)


async def test_without_descriptors_new_clients_wait(caplog: pytest.LogCaptureFixture) -> None:
    intake = KeepingIntake()
    async with serving(TcpSource("127.0.0.1:0"), intake) as port:
        with socket.socket() as client:
            client.setblocking(False)
            with no_free_descriptor():
                client.connect_ex(("127.0.0.1", port))
                await until(lambda: bool(caplog.records))
            await anyio.wait_writable(client)
            client.send(b"late\n")
            await intake.holds(1)
    assert intake.records() == [b"late\n"]
    assert len(caplog.records) == 1
    assert "source tcp can't accept connections" in caplog.text


def test_options_of_connections_are_checked() -> None:
    make: Any = TcpSource
    source = make("127.0.0.1:9000", idle_timeout="2m", max_record_bytes="64KiB", name="rides")
    assert (source.idle_timeout, source.max_record_bytes, source.name) == (120.0, 65536, "rides")
    assert (source.format, source.is_finite) == ("jsonl", False)
    with pytest.raises(ConfigError) as error:
        make("127.0.0.1:9000", max_connections=0, idle_timeout="0s", format="xml", when_full="maybe")
    keys = {problem.key for problem in error.value.problems}
    assert keys == {"max_connections", "idle_timeout", "format", "when_full"}


def test_every_option_has_a_description() -> None:
    options = TypeAdapter(TcpSource).json_schema()["properties"]
    assert [key for key, option in options.items() if "description" not in option] == ["name"]
