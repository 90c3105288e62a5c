"""The TCP sink and real servers: every byte in order, and a server that is not there or goes away is told."""

from __future__ import annotations

import socket
import struct
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from threading import Thread

import anyio
import pytest
from anyio import to_thread
from anyio.abc import SocketAttribute, SocketListener, SocketStream

from streambatch.connectors.sockets.tcp_sink import TcpSink, TcpWriter
from streambatch.core.errors import ConfigError, SinkError, SinkOutage
from streambatch.core.parts import Site

pytestmark = pytest.mark.anyio


async def test_all_that_is_written_comes_in_order_also_at_a_slow_server() -> None:
    received = bytearray()
    ended = anyio.Event()

    async def keep(client: SocketStream) -> None:
        async with client:
            async for block in client:
                received.extend(block)
                await anyio.lowlevel.checkpoint()
        ended.set()

    payloads = [b"%d\n" % number * 100_000 for number in range(10)]
    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, keep)
        sink = TcpSink(f"127.0.0.1:{listener.extra(anyio.abc.SocketAttribute.local_port)}").build(Site())
        with anyio.fail_after(20):
            await sink.open(b"id,score\n")
            for payload in payloads:
                await sink.write(payload)
            assert await sink.sync() == len(b"id,score\n") + sum(map(len, payloads))
            await sink.close()
            await ended.wait()
        tasks.cancel_scope.cancel()
    assert bytes(received) == b"id,score\n" + b"".join(payloads)


class Server:
    """Keeps what comes over each connection, as far as it reads it."""

    def __init__(self, listener: SocketListener) -> None:
        self.received: list[bytearray] = []
        self.listener = listener
        self.clients: list[SocketStream] = []
        self.changed = anyio.Event()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.listener.extra(SocketAttribute.local_port)}"

    async def meet(self, client: SocketStream) -> None:
        self.clients.append(client)
        kept = bytearray()
        self.received.append(kept)
        self.notify()
        async with client:
            with suppress(anyio.BrokenResourceError, anyio.ClosedResourceError, anyio.EndOfStream):
                while True:
                    kept.extend(await client.receive())
                    self.notify()

    def notify(self) -> None:
        self.changed.set()
        self.changed = anyio.Event()

    async def has(self, data: bytes, at: int = -1) -> None:
        """Wait until so much came over a connection."""
        while not self.received or bytes(self.received[at]) != data:
            await self.changed.wait()

    async def ends_with(self, data: bytes) -> bytes:
        """Wait for the end of what comes over the newest connection, and return all of it."""
        while not self.received or not self.received[-1].endswith(data):
            await self.changed.wait()
        return bytes(self.received[-1])

    async def reset(self) -> None:
        """Break the connection that is there."""
        client = self.clients[-1]
        client.extra(SocketAttribute.raw_socket).setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_NOT)
        await anyio.aclose_forcefully(client)


LINGER_NOT = struct.pack("ii", 1, 0)


@asynccontextmanager
async def serving(*, port: int = 0) -> AsyncIterator[Server]:
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=port)
    async with listener, anyio.create_task_group() as tasks:
        server = Server(listener)  # type: ignore[arg-type]  # one address, one listener
        tasks.start_soon(listener.serve, server.meet)
        with anyio.fail_after(20):
            yield server
        tasks.cancel_scope.cancel()


@asynccontextmanager
async def opened(sink: TcpWriter, header: bytes = b"") -> AsyncIterator[TcpWriter]:
    try:
        await sink.open(header)
        yield sink
    finally:
        await sink.close()


async def written(sink: TcpWriter, payload: bytes) -> None:
    """Write as a pipeline does, again if need be."""
    try:
        await sink.write(payload)
    except SinkOutage:
        await sink.write(payload)


async def synced(sink: TcpWriter) -> None:
    try:
        await sink.sync()
    except SinkOutage:
        await sink.sync()


async def test_nobody_there_is_an_outage_until_somebody_is() -> None:
    async with serving() as server:
        address = server.address
    sink = TcpSink(address).build(Site())
    for _ in range(2):
        with pytest.raises(SinkOutage, match=f"^sink tcp: can't connect to {address}: Connection refused$"):
            await sink.open(b"")
    async with serving(port=int(address.rpartition(":")[2])) as server, opened(sink, b"id,score\n"):
        await sink.write(b"1,2\n")
        await server.has(b"id,score\n1,2\n")


async def test_a_lost_connection_is_an_outage_and_the_write_repeated_makes_it_anew() -> None:
    async with serving() as server, opened(TcpSink(server.address).build(Site()), b"id,score\n") as sink:
        await sink.write(b"1,1\n")
        await server.has(b"id,score\n1,1\n")
        assert await sink.sync() == 13
        await server.reset()
        number, rows = 2, []
        with pytest.raises(SinkOutage, match=r"^sink tcp: lost the connection to 127\.0\.0\.1:"):
            while len(server.received) == 1:
                rows.append(b"%d,1\n" % number)
                await sink.write(rows[-1])
                number += 1
            raise SinkOutage("tcp", f"lost the connection to {server.address}")  # found out by itself, and sent again
        await sink.write(b"end\n")
        await sink.sync()
        got = await server.ends_with(b"end\n")
        assert got.startswith(b"id,score\n")
        assert [row for row in rows[:-1] if row not in got] == []
        assert b"1,1\n" not in got


class Staller:
    """A server that lets clients connect and reads nothing of what they send, before `read`."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self.address = f"127.0.0.1:{listener.getsockname()[1]}"
        self.received: list[bytes] = []
        self._reading = Thread(target=self._read)

    def read(self) -> None:
        """Begin to read, one connection after the other to its end."""
        self._reading.start()

    def end(self) -> bytes:
        """Return what came over the last connection, once it was closed."""
        socket.create_connection(self._listener.getsockname()).close()
        self._reading.join()
        return self.received[-1]

    def _read(self) -> None:
        while True:
            client, _ = self._listener.accept()
            blocks = []
            with client, suppress(ConnectionResetError):
                while block := client.recv(1 << 20):
                    blocks.append(block)
            if not blocks and self.received:
                break
            self.received.append(b"".join(blocks))


@contextmanager
def stalling() -> Iterator[Staller]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        yield Staller(listener)


async def test_a_server_that_takes_nothing_is_given_up_and_what_it_left_is_sent_again() -> None:
    payloads = [b"%02d" % number * 50_000 for number in range(99)]
    with stalling() as server:
        async with opened(TcpSink(server.address, timeout=0.3).build(Site()), b"head\n") as sink:
            at = 0
            with pytest.raises(SinkOutage, match=rf"^sink tcp: {server.address} took in nothing for 0\.3 s$"):
                for at, payload in enumerate(payloads):  # noqa: B007  # used after the loop
                    await sink.write(payload)
            assert at > 0
            server.read()
            for payload in payloads[at:]:
                await sink.write(payload)
            await sink.sync()
        got = await to_thread.run_sync(server.end)
    assert got.startswith(b"head\n")
    rows = got.removeprefix(b"head\n")
    assert b"".join(payloads).endswith(rows)
    assert len(rows) % 100_000 == 0
    assert len(rows) >= 100_000 * (99 - at)


async def test_sync_says_when_the_other_side_has_not_got_it_and_the_next_sends_it_again() -> None:
    with stalling() as server:
        async with opened(TcpSink(server.address, timeout=0.3).build(Site())) as sink:
            rows = [b"%d" % number * 20_000 + b"\n" for number in range(5)]
            for row in rows:
                await sink.write(row)
            with pytest.raises(SinkOutage, match=r"took in nothing for 0\.3 s"):
                await sink.sync()
            server.read()
            assert await sink.sync() == sum(map(len, rows))
        got = await to_thread.run_sync(server.end)
    assert got
    assert b"".join(rows).endswith(got)


async def test_a_write_cancelled_half_way_is_followed_by_a_new_connection() -> None:
    with stalling() as server:
        async with opened(TcpSink(server.address).build(Site()), b"head\n") as sink:
            with anyio.move_on_after(0.2):
                await sink.write(b"torn" * 5_000_000)
            server.read()
            await sink.write(b"whole\n")
            await sink.sync()
        assert await to_thread.run_sync(server.end) == b"head\nwhole\n"


async def test_sync_finds_a_connection_lost_and_sends_what_is_missing_over_a_new_one() -> None:
    async with serving() as server, opened(TcpSink(server.address).build(Site())) as sink:
        await sink.write(b"first\n")
        await sink.sync()
        await server.reset()
        for row in (b"second\n", b"third\n", b"fourth\n"):
            await written(sink, row)
        await synced(sink)
        assert await server.ends_with(b"fourth\n") == b"second\nthird\nfourth\n"


async def test_what_is_no_address_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"address: found '9000'; allowed: host:port"):
        TcpSink("9000")
    with pytest.raises(SinkError, match="not connected"):
        await TcpSink("127.0.0.1:1").build(Site()).write(b"x")
