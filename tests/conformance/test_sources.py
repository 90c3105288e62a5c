"""The suite for sources, on every source that is built in."""

import gzip
import json
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal

import anyio
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from streambatch.connectors.files.source import FileSource
from streambatch.connectors.http.source import HttpSource
from streambatch.connectors.memory.source import MemorySource
from streambatch.connectors.sockets.tcp import TcpSource
from streambatch.connectors.sockets.udp import UdpSource
from streambatch.connectors.sockets.unix import UnixSource
from streambatch.connectors.stdio.source import StdinSource
from streambatch.core.parts import Source
from streambatch.core.wrapping import RunningSource
from streambatch.net.addresses import parse_address
from streambatch.testing import SourceConformance

pytestmark = pytest.mark.slow
BOTH = ("asyncio", "trio")


def lines(records: Sequence[bytes]) -> bytes:
    return b"".join(record + b"\n" for record in records)


class Lines(SourceConformance):
    """Sources whose records are lines of one partition."""

    def positions(self, records: Sequence[bytes]) -> Sequence[int] | None:
        return list(accumulate(len(record) + 1 for record in records))


class TestFile(Lines):
    def make_source(self, folder: Path, records: Sequence[bytes]) -> FileSource:
        (folder / "in.jsonl").write_bytes(lines(records))
        return FileSource(str(folder / "in.jsonl"), name="rides_in")


class TestFiles(SourceConformance):
    def make_source(self, folder: Path, records: Sequence[bytes]) -> FileSource:
        for at in range(4):
            part = records[at * len(records) // 4 : (at + 1) * len(records) // 4]
            (folder / f"{at}.jsonl").write_bytes(lines(part))
        return FileSource(str(folder / "*.jsonl"))


class TestGzippedFile(Lines):
    def make_source(self, folder: Path, records: Sequence[bytes]) -> FileSource:
        (folder / "in.jsonl.gz").write_bytes(gzip.compress(lines(records), 1))
        return FileSource(str(folder / "in.jsonl.gz"))


class TestCsvFile(SourceConformance):
    def make_source(self, folder: Path, records: Sequence[bytes]) -> FileSource:
        (folder / "in.csv").write_bytes(lines([b"id,x,note", *records]))
        return FileSource(str(folder / "in.csv"), format="csv")

    def record(self, number: int) -> bytes:
        return b'%d,%d.5,"%s,"' % (number, number, b"-" * 400)

    def long_record(self, size: int) -> bytes:
        return b"-1,0.5," + b"-" * (size - 7)


class TestLengthPrefixedFile(SourceConformance):
    def make_source(self, folder: Path, records: Sequence[bytes]) -> FileSource:
        framed = b"".join(len(record).to_bytes(4, "big") + record for record in records)
        (folder / "in.bin").write_bytes(framed)
        return FileSource(str(folder / "in.bin"), format="length_prefixed")

    def positions(self, records: Sequence[bytes]) -> Sequence[int] | None:
        return list(accumulate(4 + len(record) for record in records))


class TestParquetFile(SourceConformance):
    """Its records are rows of a table, and have no length that could be too much."""

    format: Literal["parquet", "arrow"] = "parquet"

    def make_source(self, folder: Path, records: Sequence[bytes]) -> FileSource:
        schema = pa.schema({"id": pa.int64(), "x": pa.float64(), "note": pa.string()})
        table = pa.Table.from_pylist([json.loads(record) for record in records], schema)
        path = str(folder / "in")
        if self.format == "parquet":
            pq.write_table(table, path, row_group_size=500)
        else:
            with pa.ipc.new_stream(path, schema) as stream:
                stream.write_table(table, max_chunksize=500)
        return FileSource(path, format=self.format)

    def record(self, number: int) -> bytes:
        return b'{"id":%d,"x":%d.5,"note":"%s"}' % (number, number, b"-" * 400)

    def positions(self, records: Sequence[bytes]) -> Sequence[int] | None:
        return range(1, len(records) + 1)

    def test_an_oversize_record_is_one_fault(self, tmp_path: Path) -> None:
        pytest.skip("a row has no such limit")


class TestArrowFile(TestParquetFile):
    format = "arrow"


class TestFollowedFile(Lines):
    backends = BOTH
    can_be_read_again = False

    def make_source(self, folder: Path, records: Sequence[bytes]) -> FileSource:
        self.path = folder / "in.jsonl"
        self.path.write_bytes(lines(records[: len(records) // 2]))
        return FileSource(str(self.path), follow=True)

    async def send(self, reader: Any, records: Sequence[bytes]) -> None:
        with self.path.open("ab") as file:
            file.write(lines(records[len(records) // 2 :]))


class TestMemory(Lines):
    backends = BOTH

    def make_source(self, folder: Path, records: Sequence[bytes]) -> Source | RunningSource:
        block = lines(records)
        return MemorySource([block[at : at + 5000] for at in range(0, len(block), 5000)])


class TestTcp(Lines):
    backends = BOTH

    def make_source(self, folder: Path, records: Sequence[bytes]) -> Source | RunningSource:
        return TcpSource("127.0.0.1:0")

    async def send(self, reader: Any, records: Sequence[bytes]) -> None:
        host, port = parse_address(await reader.listening())
        async with await anyio.connect_tcp(host, port) as client:
            await client.send(lines(records))


class TestTcpFromMany(SourceConformance):
    """Each client sends its share; which of them comes first is nobody's promise."""

    many = 400

    def make_source(self, folder: Path, records: Sequence[bytes]) -> Source | RunningSource:
        return TcpSource("127.0.0.1:0")

    async def send(self, reader: Any, records: Sequence[bytes]) -> None:
        host, port = parse_address(await reader.listening())
        async with anyio.create_task_group() as clients:
            for at in range(8):
                clients.start_soon(self.client, host, port, records[at::8])

    async def client(self, host: str, port: int, records: Sequence[bytes]) -> None:
        async with await anyio.connect_tcp(host, port) as client:
            await client.send(lines(records))


class TestHttp(Lines):
    def make_source(self, folder: Path, records: Sequence[bytes]) -> Source | RunningSource:
        return HttpSource("127.0.0.1:0")

    async def send(self, reader: Any, records: Sequence[bytes]) -> None:
        host, port = parse_address(await reader.listening())
        body = lines(records)
        head = b"POST /records HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body)
        async with await anyio.connect_tcp(host, port) as client:
            await client.send(head + body)
            answer = await client.receive()
        assert answer.startswith(b"HTTP/1.1 200 "), answer


class TestUdp(SourceConformance):
    """So few records that the system need not drop any."""

    backends = BOTH
    many = 100

    def make_source(self, folder: Path, records: Sequence[bytes]) -> Source | RunningSource:
        return UdpSource("127.0.0.1:0")

    async def send(self, reader: Any, records: Sequence[bytes]) -> None:
        host, port = parse_address(await reader.listening())
        async with await anyio.create_connected_udp_socket(host, port) as client:
            for record in records:
                await client.send(record)

    def record(self, number: int) -> bytes:
        return b'{"id": %d}' % number

    def test_an_oversize_record_is_one_fault(self, tmp_path: Path) -> None:
        pytest.skip("a datagram is never that large")


class TestUnix(Lines):
    backends = BOTH

    @pytest.fixture(autouse=True)
    def short(self) -> Iterator[None]:
        """A socket's path has to be short, and a test's folder isn't."""
        self.sockets = Path(tempfile.mkdtemp())
        yield
        shutil.rmtree(self.sockets)

    def make_source(self, folder: Path, records: Sequence[bytes]) -> Source | RunningSource:
        return UnixSource(self.sockets / "in.sock")

    async def send(self, reader: Any, records: Sequence[bytes]) -> None:
        async with await anyio.connect_unix(await reader.listening()) as client:
            await client.send(lines(records))


class TestStdin(Lines):
    """Descriptor 0 is exchanged under the test: a pipe, then a socket, whose other end `send` writes."""

    can_be_read_again = False

    @pytest.fixture(autouse=True)
    def own_stdin(self) -> Iterator[None]:
        kept = os.dup(0)
        self.writing: socket.socket | None = None
        yield
        self.close()
        os.dup2(kept, 0)
        os.close(kept)

    def make_source(self, folder: Path, records: Sequence[bytes]) -> Source | RunningSource:
        self.close()
        reading, self.writing = socket.socketpair()
        self.writing.setblocking(False)
        with reading:
            os.dup2(reading.fileno(), 0)
        return StdinSource()

    async def send(self, reader: Any, records: Sequence[bytes]) -> None:
        assert self.writing is not None
        left = memoryview(lines(records))
        while left:
            await anyio.wait_writable(self.writing)
            with suppress(BlockingIOError):
                left = left[self.writing.send(left) :]
        self.writing.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        if self.writing is not None:
            self.writing.close()
