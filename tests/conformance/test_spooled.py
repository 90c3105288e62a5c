"""The suite for sources, on sockets with a spool."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anyio
import pytest

from streambatch.connectors.http.source import HttpSource
from streambatch.connectors.sockets.tcp import TcpSource
from streambatch.core.protocols import Source
from streambatch.net.addresses import parse_address
from streambatch.spool.source import SpooledSource, spooled
from streambatch.testing import SourceConformance

pytestmark = pytest.mark.slow
SPOOL: Any = {"max_bytes": "256MiB"}


class Spooled(SourceConformance):
    def source_again(self, source: Any) -> Source:
        return spooled(source.source, source.folder.parents[1])


class TestSpooledTcp(Spooled):
    backends = ("asyncio", "trio")

    def make_source(self, folder: Path, records: Sequence[bytes]) -> Source:
        return spooled(TcpSource("127.0.0.1:0", spool=SPOOL), folder)

    async def send(self, source: Any, records: Sequence[bytes]) -> None:
        async with await connected(source) as client:
            await client.send(b"".join(record + b"\n" for record in records))

    def test_it_resumes_where_records_were_acked(self, tmp_path: Path) -> None:
        pytest.skip("a client isn't told when its records are safe")


class TestSpooledHttp(Spooled):
    def make_source(self, folder: Path, records: Sequence[bytes]) -> Source:
        return spooled(HttpSource("127.0.0.1:0", spool=SPOOL), folder)

    async def send(self, source: Any, records: Sequence[bytes]) -> None:
        body = b"".join(record + b"\n" for record in records)
        head = b"POST /records HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body)
        async with await connected(source) as client:
            await client.send(head + body)
            answer = await client.receive()
        assert answer.startswith(b"HTTP/1.1 200 "), answer


async def connected(source: Any) -> anyio.abc.SocketStream:
    assert isinstance(source, SpooledSource)
    inner: Any = source.source
    return await anyio.connect_tcp(*parse_address(await inner.listening()))
