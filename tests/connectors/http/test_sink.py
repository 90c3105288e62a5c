"""The HTTP sink and real servers: what is posted, what is answered, and what goes wrong."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import anyio
import pytest
from anyio.abc import SocketStream

from streambatch.connectors.http.sink import HttpSink
from streambatch.core.errors import ConfigError, SinkError
from streambatch.core.parts import Site

pytestmark = pytest.mark.anyio


class Server(ThreadingHTTPServer):
    """Keeps what is posted and answers with the next of `statuses`, 200 after them."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.posts: list[tuple[str, dict[str, str], bytes]] = []
        self.clients: set[Any] = set()
        self.statuses: list[int] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/scores?from=here"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.posts.append((self.path, {name.lower(): value for name, value in self.headers.items()}, body))
        self.server.clients.add(self.client_address)
        answer = b"because " + b"x" * 1000
        self.send_response(self.server.statuses.pop(0) if self.server.statuses else 200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def served() -> Iterator[Server]:
    with Server() as server:
        thread = Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


async def test_a_write_is_a_post_with_an_id_of_its_own_on_one_connection() -> None:
    with served() as server:
        sink = HttpSink(server.url, headers={"Authorization": "Bearer x"}).build(Site())
        await sink.open(b"")
        payloads = [b'{"id": 1}\n', b'{"id": 2}\n' * 100_000, b"3\n"]
        for payload in payloads:
            await sink.write(payload)
        assert await sink.sync() == sum(map(len, payloads))
        await sink.close()
        paths, heads, bodies = zip(*server.posts, strict=True)
        assert list(bodies) == payloads
        assert set(paths) == {"/scores?from=here"}
        assert {head["content-type"] for head in heads} == {"application/x-ndjson"}
        assert {head["authorization"] for head in heads} == {"Bearer x"}
        ids = [head["streambatch-batch-id"] for head in heads]
        assert [batch_id.rpartition("-")[2] for batch_id in ids] == ["1", "2", "3"]
        assert len({batch_id.rpartition("-")[0] for batch_id in ids}) == 1
        assert len(server.clients) == 1


@pytest.mark.parametrize("status", [301, 404, 413, 500, 503])
async def test_a_refusal_is_told_with_the_beginning_of_the_answer(status: int) -> None:
    with served() as server:
        server.statuses = [status]
        sink = HttpSink(server.url).build(Site())
        with pytest.raises(SinkError, match=f"^sink http: http://.* answered {status}: because x{{192}}$"):
            await sink.write(b"1\n")
        await sink.write(b"2\n")
        await sink.close()
    assert [body for _, _, body in server.posts] == [b"1\n", b"2\n"]


@pytest.mark.parametrize("status", [200, 201, 202, 299])
async def test_any_2xx_is_fine(status: int) -> None:
    with served() as server:
        server.statuses = [status]
        sink = HttpSink(server.url).build(Site())
        await sink.write(b"1\n")
        await sink.close()


async def test_nobody_there_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    with pytest.raises(SinkError, match=f"can't post to http://127.0.0.1:{port}/: Connection refused"):
        await HttpSink(f"http://127.0.0.1:{port}/").build(Site()).write(b"1\n")


def raw(answer: Callable[[int], bytes]) -> Callable[[SocketStream], Any]:
    """A server that reads one post, says what `answer` makes of its number, and closes."""
    count = 0

    async def serve(client: SocketStream) -> None:
        nonlocal count
        async with client:
            await client.receive()
            count += 1
            await client.send(answer(count))

    return serve


async def posted_to(serve: Callable[[SocketStream], Any], *payloads: bytes, **options: Any) -> None:
    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, serve)
        port = listener.extra(anyio.abc.SocketAttribute.local_port)
        sink = HttpSink(f"http://127.0.0.1:{port}/", **options).build(Site())
        try:
            with anyio.fail_after(20):
                for payload in payloads:
                    await sink.write(payload)
        finally:
            await sink.close()
            tasks.cancel_scope.cancel()


async def test_a_kept_connection_that_was_closed_meanwhile_is_made_anew() -> None:
    await posted_to(raw(lambda number: b"HTTP/1.1 204 No Content\r\n\r\n"), b"1\n", b"2\n", b"3\n")


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nab", b"SSH-2.0\r\n\r\n"])
async def test_half_an_answer_is_none(answer: bytes) -> None:
    with pytest.raises(BaseExceptionGroup) as raised:
        await posted_to(raw(lambda number: answer), b"1\n")
    assert raised.group_contains(SinkError, match="can't post to")


async def test_a_server_that_does_not_answer_is_not_waited_for_forever() -> None:
    async def sleep(client: SocketStream) -> None:
        async with client:
            await anyio.sleep_forever()

    with pytest.raises(BaseExceptionGroup) as raised:
        await posted_to(sleep, b"1\n", timeout=0.05)
    assert raised.group_contains(SinkError, match="took more than 0.05 s")


@pytest.mark.parametrize("url", ["", "localhost:80", "ftp://x/", "http://", "http://x:99999/", "http://[x/"])
async def test_what_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match=r"url: found .*; allowed: a URL such as"):
        HttpSink(url).build(Site())
