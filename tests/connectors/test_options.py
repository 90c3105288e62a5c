"""Sources and sinks are options: one set of them makes one running part after the other, in any process."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import shutil
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import BaseRequestHandler, ThreadingTCPServer
from typing import Any

import anyio
import anyio.to_thread
import pytest

import streambatch as sb
from streambatch.net.addresses import parse_address

RECORDS = 30
LINES = b"".join(b'{"id": %d, "x": [%d.0]}\n' % (number, number) for number in range(RECORDS))


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder whose path is short enough for a socket in it."""
    path = Path(tempfile.mkdtemp())
    yield path
    shutil.rmtree(path)


SOURCES: dict[str, Callable[[Path], Any]] = {
    "tcp": lambda folder: sb.TcpSource("127.0.0.1:0"),
    "tcp_spooled": lambda folder: sb.TcpSource("127.0.0.1:0", spool={"max_bytes": "64MiB"}),  # type: ignore[arg-type]
    "unix": lambda folder: sb.UnixSource(folder / "in.sock"),
    "udp": lambda folder: sb.UdpSource("127.0.0.1:0"),
    "http": lambda folder: sb.HttpSource("127.0.0.1:0"),
    "memory": lambda folder: sb.MemorySource([LINES[:100], LINES[100:]]),
    "stdin": lambda folder: sb.StdinSource(),
}


@pytest.mark.parametrize("kind", SOURCES)
def test_a_source_runs_twice_and_in_another_process(kind: str, folder: Path, elsewhere: Callable[..., int]) -> None:
    source = SOURCES[kind](folder)
    before = pickle.dumps(source)
    assert [scored(source, sb.NoneSink(), folder / str(run)) for run in range(2)] == [RECORDS, RECORDS]
    assert pickle.dumps(source) == before, "what ran left something in the options"
    assert elsewhere(source, sb.NoneSink(), folder / "elsewhere") == RECORDS


@pytest.mark.parametrize("kind", ["tcp", "http", "stdout", "none", "memory"])
def test_a_sink_is_written_twice_and_in_another_process(kind: str, folder: Path, elsewhere: Callable[..., int]) -> None:
    with served(kind) as (sink, received):
        before = pickle.dumps(sink)
        source = sb.MemorySource([LINES])
        assert [scored(source, sink, folder / str(run)) for run in range(2)] == [RECORDS, RECORDS]
        assert kind == "memory" or pickle.dumps(sink) == before, "what ran left something in the options"
        assert elsewhere(source, sink, folder / "elsewhere") == RECORDS
    if received is not None:
        assert b"".join(received).count(b"\n") == 3 * RECORDS
    if isinstance(sink, sb.MemorySink):
        assert sink.data().count(b"\n") == 2 * RECORDS, "the scores of another process stay there"


def test_one_pipeline_runs_twice(folder: Path) -> None:
    pipeline = pipeline_of(sb.TcpSource("127.0.0.1:0"), sb.MemorySink(), folder)
    assert [anyio.run(run_fed, pipeline, folder) for _ in range(2)] == [RECORDS, RECORDS]


def scored(source: Any, sink: Any, folder: Path) -> int:
    """Run a pipeline, send its source the records, and return how many were scored."""
    return anyio.run(run_fed, pipeline_of(source, sink, folder), folder)


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[Callable[[Any, Any, Path], int]]:
    """Do what `scored` does in a process that was spawned, from pickled options."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        yield lambda source, sink, folder: pool.apply(scored_from, (pickle.dumps((source, sink)), folder))


def scored_from(options: bytes, folder: Path) -> int:
    source, sink = pickle.loads(options)
    return scored(source, sink, folder)


def pipeline_of(source: Any, sink: Any, folder: Path) -> sb.Pipeline:
    record = sb.RecordSchema(id="id", features="x", shape=(1,))
    return sb.Pipeline(sources=[source], record=record, model=sb.LinearModel([2.0]), sink=sink, state_dir=folder)


async def run_fed(pipeline: sb.Pipeline, folder: Path) -> int:
    with anyio.fail_after(30), stdin_of(folder):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(feed, pipeline)
            report = await pipeline.run()
            tasks.cancel_scope.cancel()
    return report.records["scored"]


async def feed(pipeline: sb.Pipeline) -> None:
    """Send the records to where the source listens, and stop once they are scored; do nothing if it does not listen."""
    address = await pipeline.listening(pipeline.sources[0].name)
    if address is None:
        return
    await anyio.to_thread.run_sync(send, type(pipeline.sources[0]).__name__, address)
    while pipeline.snapshot().totals.scored < RECORDS:
        await anyio.sleep(0.01)
    pipeline.stop()


def send(kind: str, address: str) -> None:
    if kind == "UdpSource":
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.sendto(LINES, parse_address(address))
        return
    family: Any = socket.AF_UNIX if kind == "UnixSource" else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as client:
        client.connect(address if kind == "UnixSource" else parse_address(address))
        if kind == "HttpSource":
            client.sendall(b"POST /records HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(LINES) + LINES)
            assert client.recv(100).startswith(b"HTTP/1.1 200")
        else:
            client.sendall(LINES)


@contextmanager
def stdin_of(folder: Path) -> Iterator[None]:
    """Put a file of the records in the place of descriptor 0."""
    folder.mkdir(exist_ok=True)
    (folder / "in.jsonl").write_bytes(LINES)
    kept, own = os.dup(0), os.open(folder / "in.jsonl", os.O_RDONLY)
    os.dup2(own, 0)
    os.close(own)
    try:
        yield
    finally:
        os.dup2(kept, 0)
        os.close(kept)


@contextmanager
def served(kind: str) -> Iterator[tuple[Any, list[bytes] | None]]:
    """Yield a sink, and what its server receives, if it has one."""
    if kind not in ("tcp", "http"):
        yield {"stdout": sb.StdoutSink, "none": sb.NoneSink, "memory": sb.MemorySink}[kind](), None
        return
    received: list[bytes] = []

    class Lines(BaseRequestHandler):
        def handle(self) -> None:
            while block := self.request.recv(1 << 16):
                received.append(block)

    class Posts(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            received.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(204)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None: ...

    made = (
        ThreadingTCPServer(("127.0.0.1", 0), Lines) if kind == "tcp" else ThreadingHTTPServer(("127.0.0.1", 0), Posts)
    )
    with made as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        address = f"127.0.0.1:{server.server_address[1]}"
        try:
            yield (sb.TcpSink(address) if kind == "tcp" else sb.HttpSink(f"http://{address}/scores")), received
        finally:
            server.shutdown()
            thread.join()
