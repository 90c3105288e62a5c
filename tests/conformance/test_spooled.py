"""The suite for sources, on sockets with a spool."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anyio
import pytest

from streambatch.connectors.http.source import HttpSource
from streambatch.connectors.sockets.tcp import TcpSource
from streambatch.core.parts import Source
from streambatch.core.wrapping import RunningSource
from streambatch.net.addresses import parse_address
from streambatch.spool.spooled import SpooledReader
from streambatch.testing import SourceConformance

pytestmark = pytest.mark.slow
SPOOL: Any = {"max_bytes": "256MiB"}


class TestSpooledTcp(SourceConformance):
    backends = ("asyncio", "trio")

    def make_source(self, folder: Path, records: Sequence[bytes]) -> Source | RunningSource:
        return TcpSource("127.0.0.1:0", spool=SPOOL)

    async def send(self, reader: Any, records: Sequence[bytes]) -> None:
        async with await connected(reader) as client:
            await client.send(b"".join(record + b"\n" for record in records))

    def test_it_resumes_where_records_were_acked(self, tmp_path: Path) -> None:
        pytest.skip("a client isn't told when its records are safe")


class TestSpooledHttp(SourceConformance):
    def make_source(self, folder: Path, records: Sequence[bytes]) -> Source | RunningSource:
        return HttpSource("127.0.0.1:0", spool=SPOOL)

    async def send(self, reader: Any, records: Sequence[bytes]) -> None:
        body = b"".join(record + b"\n" for record in records)
        head = b"POST /records HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body)
        async with await connected(reader) as client:
            await client.send(head + body)
            answer = await client.receive()
        assert answer.startswith(b"HTTP/1.1 200 "), answer


async def connected(reader: Any) -> anyio.abc.SocketStream:
    assert isinstance(reader, SpooledReader)
    return await anyio.connect_tcp(*parse_address(await reader.listening() or ""))
