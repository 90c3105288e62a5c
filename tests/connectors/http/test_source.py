"""The HTTP source, driven by curl and by raw sockets: what is answered is what was taken in."""

from __future__ import annotations

import gzip
import json
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import anyio
import pytest

from streambatch.connectors.http import source as module
from streambatch.connectors.http.source import HttpSource
from streambatch.core.errors import ConfigError, SourceError
from streambatch.core.parts import Site
from tests.connectors.intakes import KeepingIntake, until
from tests.programs import program

pytestmark = [pytest.mark.anyio, pytest.mark.parametrize("anyio_backend", ["asyncio"])]
LINES = b"".join(b'{"id": %d}\n' % i for i in range(1000))
CHUNKED = ("-H", "Transfer-Encoding: chunked")
GZIP = ("-H", "Content-Encoding: gzip")

ZSTD = ("-H", "Content-Encoding: zstd")
FORM = "Content-Type: multipart/form-data; boundary=x"


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: Any


@pytest.fixture(autouse=True)
def _curl() -> None:
    program("curl")


@asynccontextmanager
async def serving(intake: KeepingIntake, **options: Any) -> AsyncIterator[str]:
    """Run a source beside the test and stop it at the end. Yields its address."""
    source = HttpSource("127.0.0.1:0", **options).build(Site())
    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(source.run, intake)
            yield await source.listening()
            tasks.cancel_scope.cancel()
    assert intake.budget.used == 0
    assert intake.seen.opened == intake.seen.closed
    assert source.address is None


async def curl(address: str, *options: str, body: bytes = b"", path: str = "/records") -> Answer:
    command = ["curl", "-sS", "-i", "--max-time", "20", *options, f"http://{address}{path}"]
    if "-X" not in options:
        command[1:1] = ["--data-binary", "@-"]
    done = await anyio.run_process(command, input=body, check=False)
    assert done.returncode == 0, done.stderr
    return answers(done.stdout)[-1]


def answers(raw: bytes) -> list[Answer]:
    """Return all answers in what a server sent but those that only say to go on."""
    found = []
    while raw:
        head, _, raw = raw.partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        status = int(first.split()[1])
        if status == 100:
            continue
        size = int(headers.get("content-length", "0"))
        body, raw = raw[:size], raw[size:]
        found.append(Answer(status, headers, json.loads(body) if "json" in headers.get("content-type", "") else body))
    return found


async def talk(address: str, *pieces: bytes, end: bool = False) -> bytes:
    """Send pieces on a raw connection, half-close it if asked to, and return all that comes back until it is closed."""
    host, _, port = address.rpartition(":")
    received = b""
    async with await anyio.connect_tcp(host, int(port)) as client:
        for piece in pieces:
            await client.send(piece)
        if end:
            await client.send_eof()
        try:
            async for block in client:
                received += block
        except anyio.BrokenResourceError:
            pass
    return received


async def answer(client: anyio.abc.ByteReceiveStream) -> Answer:
    """Return the next answer on a connection."""
    received = b""
    while not received.endswith(b"}"):
        received += await client.receive()
    return answers(received)[-1]


def zstd(raw: bytes, window_log: int = 0) -> bytes:
    zstandard = pytest.importorskip("zstandard")
    parameters = zstandard.ZstdCompressionParameters.from_level(3, window_log=window_log)
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    packed: bytes = compressor.compress(raw) + compressor.flush()
    return packed


def head(*lines: str) -> bytes:
    return "\r\n".join(["POST /records HTTP/1.1", "Host: x", *lines, "", ""]).encode()


@pytest.mark.parametrize("options", [(), CHUNKED, ("--http1.0",), ("-H", "Content-Type: application/x-ndjson")])
async def test_what_is_posted_comes_in_and_is_counted(options: Sequence[str]) -> None:
    intake = KeepingIntake()
    async with serving(intake) as address:
        found = await curl(address, *options, body=LINES)
        assert (found.status, found.body) == (200, {"received": 1000})
        assert b"".join(intake.records()) == LINES


@pytest.mark.parametrize("options", [GZIP, (*GZIP, *CHUNKED), ZSTD, (*ZSTD, *CHUNKED)])
async def test_a_packed_body_is_unpacked(options: Sequence[str]) -> None:
    intake = KeepingIntake()
    pack = gzip.compress if options[1] == GZIP[1] else zstd
    async with serving(intake) as address:
        body = pack(LINES[:5000]) + pack(LINES[5000:])
        found = await curl(address, *options, body=body)
        assert (found.status, found.body) == (200, {"received": 1000})
        assert b"".join(intake.records()) == LINES


async def test_a_zstd_frame_that_asks_for_too_much_memory_is_refused() -> None:
    intake = KeepingIntake()
    async with serving(intake) as address:
        found = await curl(address, *ZSTD, body=zstd(LINES, window_log=27))
        assert found.status == 400
        assert "zstd" in found.body["error"]
        assert intake.count == 0


async def test_every_request_is_a_partition() -> None:
    intake = KeepingIntake()
    async with serving(intake) as address:
        for _ in range(3):
            await curl(address, body=b"a\nb\n")
        assert intake.by_partition() == {f"run-{n}": [b"a\n", b"b\n"] for n in (1, 2, 3)}


@pytest.mark.parametrize(
    ("body", "records"), [(b"", 0), (b"\n\n", 0), (b"one", 1), (b"one\r\ntwo", 2), (b"\xff\xfe\nnull\n", 2)]
)
async def test_odd_bodies_are_taken_as_they_are(body: bytes, records: int) -> None:
    intake = KeepingIntake()
    async with serving(intake) as address:
        found = await curl(address, body=body)
        assert (found.status, found.body) == (200, {"received": records})
        assert intake.count == records


async def test_an_oversize_line_dies_and_the_others_live() -> None:
    intake = KeepingIntake()
    async with serving(intake, max_record_bytes=1000) as address:
        found = await curl(address, body=b"a\n" + b"x" * (10 << 20) + b"\nb\n")
        assert (found.status, found.body) == (200, {"received": 3})
        assert intake.records() == [b"a\n", b"b\n"]
        assert [reason for reason, _ in intake.faults()] == ["oversize"]


async def test_records_come_in_while_the_body_is_still_on_its_way() -> None:
    intake = KeepingIntake()
    async with serving(intake) as address:
        host, _, port = address.rpartition(":")
        async with await anyio.connect_tcp(host, int(port)) as client:
            await client.send(head("Transfer-Encoding: chunked") + b"6\r\na\nb\nha\r\n")
            await intake.holds(2)
            await client.send(b"3\r\nlf\n\r\n0\r\n\r\n")
            assert (await answer(client)).body == {"received": 3}
        assert intake.records() == [b"a\n", b"b\n", b"half\n"]


async def test_a_declared_body_over_the_limit_is_refused_unread() -> None:
    intake = KeepingIntake()
    async with serving(intake, max_body_bytes=1000) as address:
        found = await curl(address, body=LINES)
        assert found.status == 413
        assert found.body == {"received": 0, "error": "the body has more than 1000 B"}
        assert intake.count == 0
        assert intake.refusals == {"size": 1}
        assert (await curl(address, body=b"a\n")).status == 200


@pytest.mark.parametrize("options", [CHUNKED, (*GZIP, *CHUNKED), GZIP])
async def test_what_came_before_the_limit_counts_and_the_answer_says_how_much(options: Sequence[str]) -> None:
    intake = KeepingIntake()
    async with serving(intake, max_body_bytes=200 << 10) as address:
        body = b"".join(b"%099d\n" % i for i in range(4000))
        found = await curl(
            address, *options, body=gzip.compress(body) if "-H" in options[:1] and GZIP[1] in options else body
        )
        assert found.status == 413
        assert found.body["error"] == "the body has more than 200 KiB"
        assert found.body["received"] == intake.count <= 2048
        assert b"".join(intake.records()) == body[: 100 * intake.count]
        assert intake.faults() == []
        assert intake.refusals == {"size": 1}


async def test_a_bomb_is_refused_for_its_ratio() -> None:
    intake = KeepingIntake()
    async with serving(intake, max_body_bytes=1 << 30, max_record_bytes=1 << 20) as address:
        found = await curl(address, *GZIP, body=gzip.compress(bytes(100 << 20)))
        assert found.status == 413
        assert found.body["error"] == "the body unpacks to more than 200 times its size"
        assert intake.budget.peak < 8 << 20


@pytest.mark.parametrize("damage", ["cut", "flipped", "plain", "trailing"])
async def test_a_corrupt_packed_body_is_told_how_far_it_was_taken(damage: str) -> None:
    intake = KeepingIntake()
    packed = gzip.compress(LINES)
    body = {
        "cut": packed[:-9],
        "flipped": packed[:-8] + b"12345678",
        "plain": LINES,
        "trailing": packed + b"no gzip",
    }[damage]
    async with serving(intake) as address:
        found = await curl(address, *GZIP, body=body)
        assert found.status == 400
        assert "gzip" in found.body["error"]
        assert found.body["received"] == intake.count
        assert LINES.startswith(b"".join(intake.records()))
        assert intake.faults() == []


async def test_a_full_queue_is_answered_before_the_first_block() -> None:
    intake = KeepingIntake()
    intake.stall()
    async with serving(intake) as address:
        for options in ((), CHUNKED, ("-H", "Expect: 100-continue")):
            found = await curl(address, *options, body=LINES * 100)
            assert (found.status, found.body) == (429, {"received": 0, "error": "the queue is full"})
            assert found.headers["retry-after"] == "1"
        assert intake.refusals == {"full": 3}
        intake.go_on()
        assert (await curl(address, body=LINES)).status == 200


async def test_a_request_that_has_begun_waits_for_room() -> None:
    intake = KeepingIntake()
    async with serving(intake) as address:
        async with anyio.create_task_group() as tasks:
            found: list[Answer] = []

            async def post() -> None:
                found.append(await curl(address, *CHUNKED, "--limit-rate", "10M", body=LINES * 200))

            tasks.start_soon(post)
            await intake.holds(1)
            intake.stall()
            await intake.is_waited_for()
            intake.go_on()
        assert found[0].body == {"received": 200_000}


@pytest.mark.parametrize(
    ("path", "options", "status", "error"),
    [
        ("/", (), 404, "/: found nothing there; allowed: POST /records"),
        ("/records/", (), 404, "/records/: found nothing there; allowed: POST /records"),
        ("/x", ("-H", "Host: ["), 404, "/x: found nothing there; allowed: POST /records"),
        ("/records", ("-X", "GET"), 405, "/records: found GET; allowed: POST"),
        ("/records", ("-X", "PUT"), 405, "/records: found PUT; allowed: POST"),
        ("/records", ("-H", "Content-Encoding: br"), 415, "content-encoding: found br; allowed: gzip, "),
        ("/records", ("-H", "Content-Encoding: gzip, gzip"), 415, "content-encoding: found gzip, gzip; allowed: "),
        ("/records", ("-H", FORM), 415, "content-type: found multipart/form-data; allowed: any but "),
    ],
)
async def test_other_requests_are_turned_away(path: str, options: Sequence[str], status: int, error: str) -> None:
    intake = KeepingIntake()
    async with serving(intake) as address:
        found = await curl(address, *options, body=LINES, path=path)
        assert found.status == status
        assert found.body["received"] == 0
        assert found.body["error"].startswith(error)
        assert found.headers.get("allow") == ("POST" if status == 405 else None)
        assert intake.count == 0


async def test_expect_100_continue_gets_its_go_ahead() -> None:
    intake = KeepingIntake()
    async with serving(intake) as address:
        host, _, port = address.rpartition(":")
        async with await anyio.connect_tcp(host, int(port)) as client:
            await client.send(head("Content-Length: 2", "Expect: 100-continue"))
            assert (await client.receive()).startswith(b"HTTP/1.1 100")
            await client.send(b"a\n")
            assert (await answer(client)).body == {"received": 1}
        assert (await curl(address, "-H", "Expect: 100-continue", body=LINES)).body == {"received": 1000}


async def test_a_client_that_stops_half_way_leaves_its_whole_lines_and_one_dead_letter() -> None:
    intake = KeepingIntake()
    async with serving(intake) as address:
        await talk(address, head("Content-Length: 100"), b"one\ntwo\nthr", end=True)
        await until(lambda: intake.count == 3)
        assert intake.records() == [b"one\n", b"two\n"]
        assert intake.faults() == [("cut_off", b"thr")]


async def test_broken_chunks_are_answered_with_what_was_taken_in() -> None:
    intake = KeepingIntake()
    async with serving(intake) as address:
        received = await talk(address, head("Transfer-Encoding: chunked"), b"6\r\na\nb\nxx\r\nno chunk\r\n")
        (found,) = answers(received)
        assert found.status == 400
        assert found.body == {"received": 2, "error": "the request's transfer encoding is broken"}
        assert intake.records() == [b"a\n", b"b\n"]
        assert intake.faults() == []
        assert (await talk(address, b"nonsense\r\n\r\n")).startswith(b"HTTP/1.1 400")
        assert (await curl(address, body=LINES)).status == 200


async def test_a_connection_serves_one_request_after_the_other() -> None:
    intake = KeepingIntake()
    request = head("Content-Length: 2") + b"a\n"
    last = head("Content-Length: 2", "Connection: close") + b"b\n"
    async with serving(intake) as address:
        found = answers(await talk(address, request + request + last))
        assert [answer.body for answer in found] == [{"received": 1}] * 3
        assert intake.seen.opened == 1
        assert set(intake.by_partition()) == {"run-1", "run-2", "run-3"}


@pytest.mark.parametrize("sent", [b"", b"POST /rec", head("Content-Length: 100") + b"one\ntw"])
async def test_who_keeps_silent_is_cut_off(sent: bytes) -> None:
    intake = KeepingIntake()
    async with serving(intake, idle_timeout=0.1) as address:
        received = await talk(address, sent)
        if b"\r\n\r\n" in sent:
            assert answers(received)[0].body == {"received": 2, "error": "nothing came for 0.1 s"}
            assert intake.faults() == [("cut_off", b"tw")]
        else:
            assert received == b""
        assert intake.seen.rejected == ({"timeout": 1} if sent else {})


async def test_clients_over_the_limit_are_sent_away() -> None:
    intake = KeepingIntake()
    async with serving(intake, max_connections=1) as address:
        host, _, port = address.rpartition(":")
        async with await anyio.connect_tcp(host, int(port)) as client:
            await client.send(head("Content-Length: 2"))
            await until(lambda: intake.seen.opened == 1)
            assert await talk(address) == b""
            assert intake.seen.rejected == {"limit": 1}
            await client.send(b"a\n")
            assert (await answer(client)).status == 200


async def test_a_stop_lets_requests_end(monkeypatch: pytest.MonkeyPatch) -> None:
    intake, source = KeepingIntake(), HttpSource("127.0.0.1:0").build(Site())
    with anyio.fail_after(20):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(source.run, intake)
            host, _, port = (await source.listening()).rpartition(":")
            async with await anyio.connect_tcp(host, int(port)) as client:
                await client.send(head("Content-Length: 8") + b"one\n")
                await intake.holds(1)
                tasks.cancel_scope.cancel()
                with anyio.CancelScope(shield=True):
                    await client.send(b"two\n")
                    assert (await answer(client)).body == {"received": 2}
                    with pytest.raises(anyio.EndOfStream):
                        await client.receive()
    assert intake.records() == [b"one\n", b"two\n"]
    assert intake.budget.used == 0


async def test_a_stop_waits_for_no_request_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GRACE_SECONDS", 0.05)
    intake = KeepingIntake()
    async with anyio.create_task_group() as tasks:
        received: list[bytes] = []

        async def send(address: str) -> None:
            received.append(await talk(address, head("Content-Length: 100") + b"one\ntw"))

        async with serving(intake) as address:
            tasks.start_soon(send, address)
            await intake.holds(1)
    (found,) = answers(received[0])
    assert (found.status, found.body) == (503, {"received": 1, "error": "the source is stopping"})
    assert intake.records() == [b"one\n"]
    assert intake.faults() == []


async def test_a_stop_loses_nothing_that_waits_for_room() -> None:
    intake, source = KeepingIntake(), HttpSource("127.0.0.1:0").build(Site())
    with anyio.fail_after(20):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(source.run, intake)
            address = await source.listening()
            async with anyio.create_task_group() as posting:
                posting.cancel_scope.shield = True
                posting.start_soon(partial_post, address)
                await intake.holds(1)
                intake.stall()
                await intake.is_waited_for()
                tasks.cancel_scope.cancel()
                intake.go_on()
    assert b"".join(intake.records()) == b"a\nb\nc\n"


async def partial_post(address: str) -> None:
    host, _, port = address.rpartition(":")
    async with await anyio.connect_tcp(host, int(port)) as client:
        await client.send(head("Content-Length: 6") + b"a\n")
        await anyio.sleep(0.05)
        await client.send(b"b\nc\n")
        assert (await answer(client)).body == {"received": 3}


async def test_when_the_pipeline_gives_up_so_does_the_source() -> None:
    class Broken(KeepingIntake):
        async def put(self, chunk: Any) -> None:
            self.memory.give(chunk.size)
            raise RuntimeError("given up")

    source, intake = HttpSource("127.0.0.1:0").build(Site()), Broken()
    statuses: list[int] = []

    async def post() -> None:
        statuses.append((await curl(await source.listening(), body=LINES)).status)

    with anyio.fail_after(20):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(post)
            with pytest.raises(RuntimeError, match="given up"):
                await source.run(intake)
    assert statuses == [503]
    assert intake.budget.used == 0


async def test_a_busy_address_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(SourceError) as caught:
            await HttpSource(listen).build(Site()).run(KeepingIntake())
        found = f"source http: can't listen on {listen}: Address already in use"
        assert str(caught.value) == f"{found}; source.http.listen: allowed is a free address of this machine"


async def test_options_are_checked(tmp_path: Path) -> None:
    for wrong in ({"listen": "9000"}, {"listen": "x:1", "max_body_bytes": 0}, {"listen": "x:1", "idle_timeout": 0}):
        with pytest.raises(ConfigError):
            HttpSource(**wrong).build(Site())
