"""The HTTP sink and servers that are away, overloaded or broken: an outage is told as one, and is over when it is."""

from __future__ import annotations

import socket
import ssl
import struct
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.abc import ByteStream, SocketAttribute
from anyio.streams.tls import TLSListener

from streambatch.connectors.http.sink import HttpSink, HttpWriter
from streambatch.core.errors import ConfigError, SinkError, SinkOutage, SinkRefused
from streambatch.core.parts import Site
from tests.programs import program

pytestmark = pytest.mark.anyio

OK = b"HTTP/1.1 204 No Content\r\n\r\n"
Behaviour = Callable[[ByteStream], Awaitable[None]]


class Server:
    """Meets each connection with the next of `behaviours`; after them, all that is posted is kept and answered."""

    def __init__(self, *behaviours: Behaviour) -> None:
        self.behaviours = list(behaviours)
        self.posts: list[tuple[str, bytes]] = []
        self.connections = 0
        self.url = ""

    async def meet(self, client: ByteStream) -> None:
        self.connections += 1
        behave = self.behaviours.pop(0) if self.behaviours else self.keep
        async with client:
            with suppress(anyio.BrokenResourceError, anyio.EndOfStream):
                await behave(client)

    async def keep(self, client: ByteStream) -> None:
        while True:
            self.posts.append(await request(client))
            await client.send(OK)


async def request(client: ByteStream) -> tuple[str, bytes]:
    """Return batch id and body of the next post."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += await client.receive()
    head, _, body = data.partition(b"\r\n\r\n")
    headers = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
    while len(body) < int(headers[b"content-length"]):
        body += await client.receive()
    return headers[b"streambatch-batch-id"].decode(), body


def answers(*answers: bytes) -> Behaviour:
    """Read a post and send an answer, so many times; then close."""

    async def behave(client: ByteStream) -> None:
        for answer in answers:
            await request(client)
            await client.send(answer)

    return behave


async def dies(client: ByteStream) -> None:
    await request(client)


async def resets(client: ByteStream) -> None:
    await client.receive()
    linger = struct.pack("ii", 1, 0)
    client.extra(SocketAttribute.raw_socket).setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)


async def stalls(client: ByteStream) -> None:
    await anyio.sleep_forever()


@asynccontextmanager
async def serving(*behaviours: Behaviour, tls: ssl.SSLContext | None = None) -> AsyncIterator[Server]:
    server = Server(*behaviours)
    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener, anyio.create_task_group() as tasks:
        port = listener.extra(SocketAttribute.local_port)
        server.url = f"{'http' if tls is None else 'https'}://127.0.0.1:{port}/scores"
        chosen = listener if tls is None else TLSListener(listener, tls, standard_compatible=False)
        tasks.start_soon(chosen.serve, server.meet)
        with anyio.fail_after(20):
            yield server
        tasks.cancel_scope.cancel()


@asynccontextmanager
async def opened(sink: HttpWriter) -> AsyncIterator[HttpWriter]:
    await sink.open(b"")
    try:
        yield sink
    finally:
        await sink.close()


async def outage_of(sink: HttpWriter, payload: bytes, batch_id: str) -> SinkOutage:
    with pytest.raises(SinkOutage) as raised:
        await sink.write_batch(payload, batch_id)
    return raised.value


def says(status: int, *headers: bytes, body: bytes = b"why") -> bytes:
    lines = [b"HTTP/1.1 %d Said so" % status, *headers, b"Content-Length: %d" % len(body)]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


@pytest.mark.parametrize(
    ("behaviour", "problem"),
    [
        (dies, "the connection was lost"),
        (resets, "the connection was lost"),
        (stalls, r"took more than 0\.2 s"),
        (answers(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nab"), "the answer is no HTTP"),
        (answers(b"220 mail.example ESMTP\r\n"), "the answer is no HTTP"),
        (answers(says(500)), "answered 500: why"),
        (answers(says(503, body=b"")), "answered 503: Said so"),
        (answers(says(599)), "answered 599"),
        (answers(says(401)), "answered 401"),
        (answers(says(403)), "answered 403"),
        (answers(says(404)), "answered 404"),
        (answers(says(408)), "answered 408"),
        (answers(says(425)), "answered 425"),
        (answers(says(429)), "answered 429"),
    ],
)
async def test_what_is_no_fault_of_the_scores_is_an_outage_and_passes(behaviour: Behaviour, problem: str) -> None:
    async with serving(behaviour, behaviour) as server, opened(HttpSink(server.url, timeout=0.2).build(Site())) as sink:
        for _ in range(2):
            error = await outage_of(sink, b"1\n", "run-1")
            assert error.retry_after is None
            with pytest.raises(SinkOutage, match=f"^sink http: .*{problem}"):
                raise error
        await sink.write_batch(b"1\n", "run-1")
        await sink.write_batch(b"2\n", "run-2")
        assert server.posts == [("run-1", b"1\n"), ("run-2", b"2\n")]
        assert server.connections == 3
        assert await sink.sync() == 4


async def test_nobody_there_is_an_outage_until_somebody_is() -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    async with opened(HttpSink(f"http://user:secret@127.0.0.1:{port}/").build(Site())) as sink:
        error = await outage_of(sink, b"1\n", "a")
        assert str(error) == f"sink http: can't post to http://127.0.0.1:{port}/: Connection refused"
        async with (
            await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=port, reuse_port=True) as listener,
            anyio.create_task_group() as tasks,
        ):
            tasks.start_soon(listener.serve, Server().meet)
            await sink.write_batch(b"1\n", "a")
            tasks.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ([b"Retry-After: 17"], 17.0),
        ([b"Retry-After:  0 "], 0.0),
        ([b"Retry-After: Sun, 06 Nov 1994 08:50:07 GMT", b"Date: Sun, 06 Nov 1994 08:49:37 GMT"], 30.0),
        ([b"Retry-After: Sunday, 06-Nov-94 08:50:07 GMT", b"Date: Sun, 06 Nov 1994 08:49:37 GMT"], 30.0),
        ([b"Retry-After: Sun, 06 Nov 1994 08:40:07 GMT", b"Date: Sun, 06 Nov 1994 08:49:37 GMT"], 0.0),
        ([b"Retry-After: Sun, 06 Nov 1994 08:50:07 GMT"], None),
        ([b"Retry-After: Sun, 06 Nov 1994 08:50:07 -0000", b"Date: Sun, 06 Nov 1994 08:49:37 GMT"], None),
        ([b"Retry-After: soon"], None),
        ([b"Retry-After: -3"], None),
        ([b"Retry-After: \xb2"], None),
        ([b"Retry-After: " + b"9" * 400], None),
    ],
)
@pytest.mark.parametrize("status", [429, 503])
async def test_a_server_may_ask_for_time(status: int, headers: list[bytes], seconds: float | None) -> None:
    async with serving(answers(says(status, *headers))) as server, opened(HttpSink(server.url).build(Site())) as sink:
        assert (await outage_of(sink, b"1\n", "a")).retry_after == seconds


@pytest.mark.parametrize("status", [400, 413, 422])
async def test_a_payload_is_refused_for_what_it_holds(status: int) -> None:
    async with serving(answers(says(status, body=b"row 3 is odd"), OK)) as server:
        async with opened(HttpSink(server.url).build(Site())) as sink:
            with pytest.raises(
                SinkRefused, match=f"^sink http: {server.url} answered {status}: row 3 is odd$"
            ) as raised:
                await sink.write_batch(b"1\n", "a")
            assert (raised.value.status, raised.value.reason) == (status, "row 3 is odd")
            await sink.write_batch(b"2\n", "b")
            assert await sink.sync() == 2
        assert server.connections == 1


@pytest.mark.parametrize("status", [301, 304, 402, 405, 409, 415, 499])
async def test_what_takes_another_config_is_neither_outage_nor_refusal(status: int) -> None:
    async with serving(answers(says(status))) as server, opened(HttpSink(server.url).build(Site())) as sink:
        with pytest.raises(SinkError, match=f"answered {status}") as raised:
            await sink.write_batch(b"1\n", "a")
        assert type(raised.value) is SinkError


async def test_a_redirect_is_told_and_not_followed() -> None:
    async with serving(answers(says(308, b"Location: https://x.example/in"))) as server:
        async with opened(HttpSink(server.url).build(Site())) as sink:
            with pytest.raises(SinkError, match=r"not followed: set url to https://x\.example/in if that is right"):
                await sink.write_batch(b"1\n", "a")


@pytest.mark.parametrize("closes", [True, False])
async def test_a_refusal_counts_though_the_payload_was_not_read(closes: bool) -> None:
    """Servers tell from its head that a request is too large; to take it for an outage would be to try for ever."""

    async def refuse(client: ByteStream) -> None:
        await client.receive(100)
        await client.send(says(413))
        if not closes:
            await anyio.sleep_forever()

    async with serving(refuse) as server, opened(HttpSink(server.url).build(Site())) as sink:
        with pytest.raises(SinkRefused):
            await sink.write_batch(b"x" * (32 << 20), "large")
        await sink.write_batch(b"x", "small")
        assert server.posts == [("small", b"x")]


async def test_a_kept_connection_that_is_closed_between_batches_is_no_outage() -> None:
    closing = [answers(OK)] * 3
    async with serving(*closing) as server, opened(HttpSink(server.url).build(Site())) as sink:
        for number in range(6):
            await sink.write_batch(b"%d\n" % number, f"run-{number}")
        assert [batch_id for batch_id, _ in server.posts] == ["run-3", "run-4", "run-5"]


async def test_a_kept_connection_that_breaks_within_an_answer_is_an_outage() -> None:
    async with serving(answers(OK, b"HTTP/1.1 200 O")) as server, opened(HttpSink(server.url).build(Site())) as sink:
        await sink.write_batch(b"1\n", "a")
        await outage_of(sink, b"2\n", "b")
        assert server.connections == 1


async def test_success_before_the_payload_was_read_does_not_count() -> None:
    async def hasty(client: ByteStream) -> None:
        await client.receive(100)
        await client.send(OK)

    async with serving(hasty) as server, opened(HttpSink(server.url).build(Site())) as sink:
        await outage_of(sink, b"x" * (32 << 20), "a")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for 127.0.0.1 that nobody signed but itself, with its key in the same file."""
    openssl = program("openssl")
    path = tmp_path_factory.mktemp("tls") / "server.pem"
    command = [
        openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
        "-subj", "/CN=here", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(path), "-out", f"{path}.crt",
    ]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    path.write_text(path.read_text() + Path(f"{path}.crt").read_text())
    return path


def tls_of(certificate: Path) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    return context


async def test_https_with_a_certificate_of_ones_own(certificate: Path) -> None:
    async with serving(answers(OK), stalls, dies, tls=tls_of(certificate)) as server:
        async with opened(HttpSink(server.url, ca_file=f"{certificate}.crt", timeout=5).build(Site())) as sink:
            await sink.write_batch(b"1\n" * 500_000, "a")
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(sink.write_batch, b"2\n", "b")
                while server.connections < 2:
                    await anyio.sleep(0.001)
                tasks.cancel_scope.cancel()
            await outage_of(sink, b"3\n", "c")
            await sink.write_batch(b"4\n" * 500_000, "d")
        assert server.posts == [("d", b"4\n" * 500_000)]


async def test_https_with_a_certificate_that_is_not_trusted_is_an_outage(certificate: Path) -> None:
    async with serving(tls=tls_of(certificate)) as server, opened(HttpSink(server.url).build(Site())) as sink:
        assert "its certificate is not trusted (self-signed certificate)" in str(await outage_of(sink, b"1\n", "a"))


async def test_https_with_a_server_that_speaks_http_is_an_outage() -> None:
    async with (
        serving(answers(OK)) as server,
        opened(HttpSink(server.url.replace("http", "https")).build(Site())) as sink,
    ):
        server.behaviours = [speaks_http]
        assert "TLS failed (" in str(await outage_of(sink, b"1\n", "a"))


async def speaks_http(client: ByteStream) -> None:
    await client.receive()
    await client.send(says(400))
    await client.receive()


async def test_certificates_that_cannot_be_read_are_told_at_once(tmp_path: Path) -> None:
    sink = HttpSink("https://127.0.0.1:1/", ca_file=str(tmp_path / "missing.pem")).build(Site())
    with pytest.raises(SinkError, match=r"ca_file .*missing\.pem: No such file or directory"):
        await sink.open(b"")
    (tmp_path / "odd.pem").write_text("no certificate")
    with pytest.raises(SinkError, match=r"ca_file .*odd\.pem: TLS failed \(.*"):
        await HttpSink("https://127.0.0.1:1/", ca_file=str(tmp_path / "odd.pem")).build(Site()).open(b"")


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"headers": {"X-Odd": "a\nb"}}, "headers: found 'X-Odd'; allowed: names and values of one line of ASCII"),
        ({"headers": {"X Odd": "a"}}, "headers: found 'X Odd'"),
        ({"headers": {"X-Odd": "ä"}}, "headers: found 'X-Odd'"),
        ({"headers": {"streambatch-batch-id": "a"}}, "headers: found 'streambatch-batch-id'; allowed: headers other"),
        ({"ca_file": "ca.pem"}, "ca_file: found 'ca.pem'; allowed: nothing, unless url begins with https"),
        ({"url": "http://x/a b"}, "url: found"),
        ({"url": "http://x/ä"}, "url: found"),
        ({"url": f"http://{'x' * 64}/"}, "url: found"),
    ],
)
async def test_options_that_can_never_work_are_refused(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError) as raised:
        HttpSink(**{"url": "http://x/", **options})
    assert problem in str(raised.value)
