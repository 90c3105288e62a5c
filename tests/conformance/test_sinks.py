"""The suite for sinks, on every sink that is built in."""

import gzip
import http.server
import os
import resource
import shutil
import socket
import socketserver
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Literal

import pytest

from streambatch.connectors.files.sink import FileSink
from streambatch.connectors.http.sink import HttpSink
from streambatch.connectors.memory.none import NoneSink
from streambatch.connectors.memory.sink import MemorySink
from streambatch.connectors.sockets.tcp_sink import TcpSink
from streambatch.connectors.stdio.sink import StdoutSink
from streambatch.core.parts import Sink
from streambatch.core.wrapping import WritingSink
from streambatch.storage.segments import Rotation
from streambatch.testing import Row, SinkConformance, rows_in

pytestmark = pytest.mark.slow
BOTH = ("asyncio", "trio")


class TestFile(SinkConformance):
    format: Literal["jsonl", "csv"] = "jsonl"
    if_exists: Literal["error", "append", "replace"] = "error"

    @pytest.fixture(autouse=True)
    def any_size(self) -> Iterator[None]:
        """Files may grow as large as they could before, whatever a test leaves."""
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        yield
        resource.setrlimit(resource.RLIMIT_FSIZE, before)

    def make_sink(self, folder: Path) -> FileSink:
        return FileSink(str(folder / "scores"), format=self.format, if_exists=self.if_exists, name="scores")

    def read_rows(self, folder: Path) -> list[Row]:
        return rows_in((folder / "scores").read_bytes(), self.format)

    def break_output(self, folder: Path) -> None:
        """Let no file grow beyond a few bytes more than this one has: a write fails half-way."""
        size = (folder / "scores").stat().st_size
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))

    def mend_output(self, folder: Path) -> None:
        limit = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))


class TestCsvFile(TestFile):
    format = "csv"


class TestCsvFileThatIsAppendedTo(TestFile):
    format = "csv"
    if_exists = "append"


class TestFileThatIsReplaced(TestFile):
    if_exists = "replace"


class TestZippedFile(SinkConformance):
    def make_sink(self, folder: Path) -> FileSink:
        return FileSink(str(folder / "scores.csv.gz"), format="csv", compression="gzip")

    def read_rows(self, folder: Path) -> list[Row]:
        return rows_in(gzip.decompress((folder / "scores.csv.gz").read_bytes()), "csv")


class TestArrowFile(SinkConformance):
    def make_sink(self, folder: Path) -> FileSink:
        return FileSink(str(folder / "scores.arrow"), format="arrow", if_exists="replace")

    def read_rows(self, folder: Path) -> list[Row]:
        return rows_in((folder / "scores.arrow").read_bytes(), "arrow")


class TestSegments(SinkConformance):
    """Every batch closes a segment; the last one may be open."""

    format: Literal["jsonl", "csv", "parquet"] = "jsonl"

    def make_sink(self, folder: Path) -> FileSink:
        path = str(folder / f"scores.{self.format}")
        return FileSink(path, format=self.format, rotate=Rotation(max_bytes=2000), if_exists="append")

    def read_rows(self, folder: Path) -> list[Row]:
        paths = [*sorted(folder.glob("scores-*")), *folder.glob("scores.*.open")]
        return [row for path in paths for row in rows_in(path.read_bytes(), self.format)]


class TestCsvSegments(TestSegments):
    format = "csv"


class TestParquet(TestSegments):
    format = "parquet"
    shows_synced = False


class TestStdout(SinkConformance):
    """Descriptor 1 is exchanged under the test, for a file."""

    backends = BOTH

    def make_sink(self, folder: Path) -> Sink | WritingSink:
        return StdoutSink(name="out")

    def read_rows(self, folder: Path) -> list[Row]:
        # A line that a cancellation tore stays behind, and what follows starts on a line of its own.
        whole = [line for line in (folder / "out").read_bytes().splitlines() if line.endswith(b"}")]
        return rows_in(b"\n".join(whole), "jsonl")

    def around(self, folder: Path) -> AbstractAsyncContextManager[None]:
        return redirected(folder / "out")


@asynccontextmanager
async def redirected(path: Path) -> AsyncIterator[None]:
    kept, own = os.dup(1), os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(own, 1)
    os.close(own)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


class TestMemory(SinkConformance):
    backends = BOTH

    @pytest.fixture(autouse=True)
    def outputs(self) -> None:
        self.kept: dict[Path, MemorySink] = {}

    def make_sink(self, folder: Path) -> Sink | WritingSink:
        return self.kept.setdefault(folder, MemorySink(format="csv"))

    def read_rows(self, folder: Path) -> list[Row]:
        return rows_in(self.kept[folder].data(), "csv")


class TestNone(SinkConformance):
    backends = BOTH

    def make_sink(self, folder: Path) -> Sink | WritingSink:
        return NoneSink()

    def read_rows(self, folder: Path) -> None:
        return None


class TestTcp(SinkConformance):
    backends = BOTH
    shows_synced = False

    def make_sink(self, folder: Path) -> Sink | WritingSink:
        return TcpSink((folder / "address").read_text())

    def read_rows(self, folder: Path) -> list[Row]:
        return rows_in((folder / "out").read_bytes(), "jsonl")

    def around(self, folder: Path) -> AbstractAsyncContextManager[None]:
        return serving(Server(("127.0.0.1", 0), Keeper), folder)

    def test_a_cancelled_write_tears_no_row(self, tmp_path: Path) -> None:
        pytest.skip("what was sent can't be taken back, and may come in later than what follows")


class TestHttp(SinkConformance):
    backends = BOTH
    overtakes = True

    def make_sink(self, folder: Path) -> Sink | WritingSink:
        return HttpSink(f"http://{(folder / 'address').read_text()}/scores")

    def read_rows(self, folder: Path) -> list[Row]:
        return rows_in((folder / "out").read_bytes(), "jsonl")

    def outage(self, folder: Path) -> AbstractAsyncContextManager[None]:
        return away(folder)

    def around(self, folder: Path) -> AbstractAsyncContextManager[None]:
        return serving(Server(("127.0.0.1", 0), Poster), folder)


class Server(socketserver.ThreadingTCPServer):
    """Runs in a thread. folder: where its handlers append to `out`; `address` says where it is.

    is_away: it hangs up on whoever comes.
    """

    daemon_threads = False
    is_away = False

    def run(self, folder: Path) -> None:
        self.folder = folder
        self.clients: list[socket.socket] = []
        self.met: SimpleQueue[tuple[str, int]] = SimpleQueue()
        (folder / "out").touch()
        (folder / "address").write_text("{}:{}".format(*self.server_address))
        self.thread = threading.Thread(target=self.serve_forever, args=(0.01,))
        self.thread.start()

    def end(self) -> None:
        """Meet all who have come, let handlers read to the end, and stop."""
        with socket.create_connection(self.socket.getsockname()) as last:
            while self.met.get(timeout=10) != last.getsockname():
                pass
        self.shutdown()
        self.thread.join()
        self.server_close()

    def leave(self) -> None:
        """Hang up on all clients, and on those to come."""
        self.is_away = True
        for client in self.clients:
            with suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)

    def verify_request(self, request: Any, client_address: Any) -> bool:
        self.clients.append(request)
        self.met.put(client_address)
        return not self.is_away


SERVERS: dict[Path, Server] = {}


class Keeper(socketserver.StreamRequestHandler):
    """Appends to a file what comes over a connection."""

    def handle(self) -> None:
        with (self.server.folder / "out").open("ab") as out:  # type: ignore[attr-defined]
            shutil.copyfileobj(self.rfile, out)


class Poster(http.server.BaseHTTPRequestHandler):
    """Appends to a file what is posted as a whole."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        length = int(self.headers["Content-Length"])
        body = self.rfile.read(length)
        if len(body) == length:
            with (self.server.folder / "out").open("ab") as out:  # type: ignore[attr-defined]
                out.write(body)
            self.send_response(204)
            self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@asynccontextmanager
async def serving(server: Server, folder: Path) -> AsyncIterator[None]:
    """Run a server; when it is over, all that was sent is in the file."""
    server.run(folder)
    SERVERS[folder] = server
    try:
        yield
    finally:
        SERVERS.pop(folder).end()


@asynccontextmanager
async def away(folder: Path) -> AsyncIterator[None]:
    """Have the folder's server away for a while."""
    SERVERS[folder].leave()
    yield
    SERVERS[folder].is_away = False
