"""The TCP sink and real servers: every byte in order, and a server that is not there or goes away is told."""

from __future__ import annotations

import socket
from contextlib import suppress

import anyio
import pytest
from anyio.abc import SocketStream

from streambatch.errors import ConfigError, SinkError
from streambatch.sinks.tcp import TcpSink

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
        sink = TcpSink(f"127.0.0.1:{listener.extra(anyio.abc.SocketAttribute.local_port)}")
        with anyio.fail_after(20):
            await sink.open(b"id,score\n")
            for payload in payloads:
                await sink.write(payload)
            assert await sink.sync() == len(b"id,score\n") + sum(map(len, payloads))
            await sink.close()
            await ended.wait()
        tasks.cancel_scope.cancel()
    assert bytes(received) == b"id,score\n" + b"".join(payloads)


async def test_nobody_there_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        address = f"127.0.0.1:{gone.getsockname()[1]}"
    with pytest.raises(SinkError, match=f"^sink tcp: can't connect to {address}: Connection refused$"):
        await TcpSink(address).open(b"")


async def test_a_server_that_goes_away_is_told() -> None:
    async def leave(client: SocketStream) -> None:
        await client.aclose()

    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, leave)
        sink = TcpSink(f"127.0.0.1:{listener.extra(anyio.abc.SocketAttribute.local_port)}")
        await sink.open(b"")
        with anyio.fail_after(20), pytest.raises(SinkError, match=r"sink tcp: lost the connection to 127\.0\.0\.1:"):
            while True:
                await sink.write(b"x" * 100_000)
        with suppress(SinkError):
            await sink.close()
        tasks.cancel_scope.cancel()


async def test_what_is_no_address_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"address: found '9000'; allowed: host:port"):
        TcpSink("9000")
    with pytest.raises(SinkError, match="not connected"):
        await TcpSink("127.0.0.1:1").write(b"x")
