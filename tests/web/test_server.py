"""The server of the admin port: where it listens, whom it keeps out, and that it leaves nothing behind."""

from __future__ import annotations

import signal
import socket
from contextlib import ExitStack

import anyio
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from streambatch.core.errors import ConfigError
from streambatch.net.addresses import parse_address
from streambatch.net.http_server import HEADER_BYTES_MAX
from streambatch.web import server as module
from streambatch.web.server import serve
from tests.web.clients import app_of, ask, serving

HALF_A_REQUEST = b"GET /livez HTTP/1.1\r\nHost: x\r\n"
LARGE = b"x" * (8 << 20)

pytestmark = [pytest.mark.anyio, pytest.mark.parametrize("anyio_backend", ["asyncio"])]


def connected(address: str, opened: ExitStack) -> socket.socket:
    """Return a client's socket, to be used without waiting."""
    client = opened.enter_context(socket.create_connection(parse_address(address), timeout=10))
    client.setblocking(False)
    return client


async def read_to_end(client: socket.socket) -> bytes:
    """Return all that comes until the server lets go, in order or not."""
    received = b""
    with anyio.fail_after(10):
        while True:
            await anyio.wait_readable(client)
            try:
                block = client.recv(1 << 16)
            except ConnectionResetError:
                return received
            if not block:
                return received
            received += block


async def test_port_0_is_the_systems_choice() -> None:
    async with serving(app_of(), "127.0.0.1:0") as address:
        host, port = parse_address(address)
        assert host == "127.0.0.1"
        assert port > 0
        assert (await ask(address, "/livez")).status == 200


async def test_a_name_may_have_several_addresses() -> None:
    async with serving(app_of(), "localhost:0") as address:
        _, port = parse_address(address)
        assert (await ask(f"127.0.0.1:{port}", "/livez")).status == 200


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="no IPv6 here")
async def test_an_ipv6_address_stands_in_brackets() -> None:
    async with serving(app_of(), "[::1]:0") as address:
        assert address.startswith("[::1]:")
        assert (await ask(address, "/livez")).status == 200


async def test_a_busy_address_is_a_problem_of_the_config() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ConfigError) as raised:
            await serve(app_of(), listen)
    (problem,) = raised.value.problems
    assert str(problem) == (
        f"http.listen: found {listen} (address already in use); allowed: a free address of this machine, or 'off'"
    )


@pytest.mark.parametrize("listen", ["192.0.2.1:0", "no-such-host.invalid:0", f"{'a' * 70}.invalid:0"])
async def test_an_address_that_is_not_this_machine_s_is_one_too(listen: str) -> None:
    with pytest.raises(ConfigError, match=r"^http.listen: found \S+ \(.+\); allowed: a free address"):
        await serve(app_of(), listen)


async def test_the_address_is_free_again_afterwards() -> None:
    async with serving(app_of()) as address:
        pass
    async with serving(app_of(), address) as again:
        assert again == address


async def test_signals_are_left_alone() -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    async with serving(app_of()) as address:
        await ask(address, "/livez")
        assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


async def test_half_open_requests_don_t_keep_a_probe_out() -> None:
    with ExitStack() as opened:
        async with serving(app_of()) as address:
            for _ in range(300):
                client = connected(address, opened)
                client.send(HALF_A_REQUEST)
                await anyio.wait_writable(client)
            assert (await ask(address, "/livez")).status == 200
            assert (await ask(address, "/metrics")).status == 200


async def test_who_has_waited_longest_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CONNECTIONS_MAX", 2)
    with ExitStack() as opened:
        async with serving(app_of()) as address:
            first, second = connected(address, opened), connected(address, opened)
            first.send(HALF_A_REQUEST)
            second.send(HALF_A_REQUEST)
            assert (await ask(address, "/livez")).status == 200
            assert await read_to_end(first) == b""
            second.send(b"Connection: close\r\n\r\n")
            assert (await read_to_end(second)).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("sent", [b"", HALF_A_REQUEST, b"G"])
async def test_a_request_that_doesn_t_come_is_not_waited_for(monkeypatch: pytest.MonkeyPatch, sent: bytes) -> None:
    monkeypatch.setattr(module, "REQUEST_SECONDS", 0.05)
    with ExitStack() as opened:
        async with serving(app_of()) as address:
            client = connected(address, opened)
            client.send(sent)
            assert await read_to_end(client) == b""


async def test_an_answer_that_isn_t_taken_in_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REQUEST_SECONDS", 0.05)
    let_go = anyio.Event()

    class Connection(module._AdminConnection):
        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            let_go.set()

    monkeypatch.setattr(module, "_AdminConnection", Connection)
    with ExitStack() as opened:
        async with serving(Starlette(routes=[Route("/", large)])) as address:
            client = connected(address, opened)
            client.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            await let_go.wait()
            assert len(await read_to_end(client)) < len(LARGE)


async def large(request: Request) -> Response:
    return Response(LARGE)


async def test_a_header_without_end_is_cut_short() -> None:
    with ExitStack() as opened:
        async with serving(app_of()) as address:
            client = connected(address, opened)
            client.send(HALF_A_REQUEST + b"X: " + b"x" * (2 * HEADER_BYTES_MAX))
            assert (await read_to_end(client)).startswith(b"HTTP/1.1 400")
            assert (await ask(address, "/livez")).status == 200


@pytest.mark.parametrize("garbage", [b"\x00\xff\x00\r\n\r\n", b"GET\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00"])
async def test_garbage_is_turned_away(garbage: bytes) -> None:
    with ExitStack() as opened:
        async with serving(app_of()) as address:
            client = connected(address, opened)
            client.send(garbage + b"\r\n\r\n")
            assert (await read_to_end(client)).startswith(b"HTTP/1.1 400")
            assert (await ask(address, "/livez")).status == 200


async def test_cancelled_it_closes_every_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GRACE_SECONDS", 0.05)
    with ExitStack() as opened:
        async with serving(Starlette(routes=[Route("/", large)])) as address:
            silent, half, slow = (connected(address, opened) for _ in range(3))
            half.send(HALF_A_REQUEST)
            slow.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            await anyio.wait_readable(slow)
        for client in (silent, half):
            assert await read_to_end(client) == b""
        assert len(await read_to_end(slow)) < len(LARGE)


async def test_cancelled_while_clients_connect_it_closes_them_too() -> None:
    with ExitStack() as opened:
        async with serving(app_of()) as address:
            clients = [connected(address, opened) for _ in range(50)]
            for client in clients:
                client.send(HALF_A_REQUEST)
        for client in clients:
            assert await read_to_end(client) == b""


async def test_an_answer_on_its_way_leaves_before_the_server_does() -> None:
    with ExitStack() as opened:
        async with anyio.create_task_group() as reading, serving(Starlette(routes=[Route("/", large)])) as address:
            client = connected(address, opened)
            client.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            await anyio.wait_readable(client)
            received: list[bytes] = []

            async def read() -> None:
                received.append(await read_to_end(client))

            reading.start_soon(read)
    assert received[0].endswith(LARGE)


async def test_an_error_of_the_app_is_an_answer(caplog: pytest.LogCaptureFixture) -> None:
    async def broken(request: Request) -> Response:
        raise RuntimeError("out of order")

    async with serving(Starlette(routes=[Route("/", broken)])) as address:
        assert (await ask(address, "/")).status == 500
        assert (await ask(address, "/")).status == 500
    assert "out of order" in caplog.text
