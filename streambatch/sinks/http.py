"""The sink that posts scores to an HTTP server, one request a write, over one connection that is kept.

Every request has an id of its own, by which a server can tell one that comes twice: a request whose connection broke
before an answer came is sent once more.
"""

from __future__ import annotations

import secrets
import ssl
from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Literal
from urllib.parse import SplitResult, urlsplit

import anyio
import h11
from anyio.abc import ByteStream
from pydantic import Field

from streambatch.addresses import cause_of
from streambatch.errors import OptionError, SinkError
from streambatch.options import options
from streambatch.units import Duration

READ_BYTES = 64 << 10
SHOWN_BYTES = 200
"""Bytes of a refusal that a message shows."""
BATCH_ID = "Streambatch-Batch-Id"

_LOST = (anyio.BrokenResourceError, anyio.EndOfStream, anyio.ClosedResourceError, OSError, h11.RemoteProtocolError)


@options
class HttpSink:
    """Post scores as JSON lines. Any answer of 200 to 299 means that the server has them; others end the run."""

    url: str
    """Where to post: `http://127.0.0.1:8080/scores`, or https."""
    headers: Mapping[str, str] = Field(default_factory=dict)
    """Headers of every request, such as Authorization."""
    timeout: Annotated[Duration, Field(gt=0)] = 30.0
    """How long a request may take, from connecting to the end of the answer."""
    format: Literal["jsonl"] = "jsonl"
    """One JSON object a line."""
    name: str = "http"
    """Label of the sink in metrics and messages."""

    def __post_init__(self) -> None:
        try:
            parts = urlsplit(self.url)
            is_right = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            is_right = False
        if not is_right:
            raise OptionError("url", repr(self.url), "a URL such as http://127.0.0.1:8080/scores")

    async def open(self, header: bytes) -> None:
        """Start a series of batch ids. The server is first asked for when there is something to send."""
        self._client.start()

    async def write(self, payload: bytes) -> None:
        """Post whole records. Raises SinkError unless the server says that it has them."""
        try:
            with anyio.fail_after(self.timeout):
                status, answer = await self._client.post(payload)
        except TimeoutError as error:
            raise SinkError(self.name, f"{self.url} took more than {self.timeout:g} s") from error
        except _LOST as error:
            raise SinkError(self.name, f"can't post to {self.url}: {_cause(error)}") from error
        if not 200 <= status < 300:
            shown = answer.decode(errors="replace").strip()
            raise SinkError(self.name, f"{self.url} answered {status}" + (f": {shown}" if shown else ""))

    async def sync(self) -> int:
        """Return the bytes posted since `open`: the server has them all."""
        return self._client.length

    async def close(self) -> None:
        """Let go of the connection."""
        await self._client.close()

    @cached_property
    def _client(self) -> _Client:
        return _Client(urlsplit(self.url), self.headers)


class _Client:
    """One connection to one server, one request at a time."""

    def __init__(self, url: SplitResult, headers: Mapping[str, str]) -> None:
        self._url = url
        self._target = (url.path or "/") + (f"?{url.query}" if url.query else "")
        self._headers = [("Host", url.netloc.rpartition("@")[2]), ("Content-Type", "application/x-ndjson")]
        self._headers += list(headers.items())
        self._stream: ByteStream | None = None
        self._conn = h11.Connection(h11.CLIENT)
        self.start()

    def start(self) -> None:
        self._series, self._posts, self.length = secrets.token_hex(8), 0, 0

    async def post(self, payload: bytes) -> tuple[int, bytes]:
        """Return status and the beginning of the answer. Cancelled or failed, the connection is not used again."""
        self._posts += 1
        is_reused = self._stream is not None
        try:
            status, answer = await self._try(payload)
        except _LOST:
            if not is_reused:
                raise
            # A server may close a connection that is kept at any time, also just when a request is on its way.
            status, answer = await self._try(payload)
        self.length += len(payload)
        return status, answer

    async def close(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            await anyio.aclose_forcefully(stream)

    async def _try(self, payload: bytes) -> tuple[int, bytes]:
        is_done = False
        try:
            stream = self._stream or await self._connect()
            head = [*self._headers, ("Content-Length", str(len(payload))), (BATCH_ID, f"{self._series}-{self._posts}")]
            request = h11.Request(method="POST", target=self._target, headers=head)
            await stream.send(self._conn.send(request) or b"")
            await stream.send(self._conn.send(h11.Data(data=payload)) or b"")
            self._conn.send(h11.EndOfMessage())
            found = await self._answer(stream)
            is_done = self._conn.our_state is h11.DONE and self._conn.their_state is h11.DONE
            if is_done:
                self._conn.start_next_cycle()
            return found
        finally:
            if not is_done:
                with anyio.CancelScope(shield=True):
                    await self.close()

    async def _connect(self) -> ByteStream:
        url = self._url
        assert url.hostname is not None
        if url.scheme == "https":
            port, context = url.port or 443, ssl.create_default_context()
            self._stream = await anyio.connect_tcp(
                url.hostname, port, tls=True, ssl_context=context, tls_standard_compatible=False
            )
        else:
            self._stream = await anyio.connect_tcp(url.hostname, url.port or 80)
        self._conn = h11.Connection(h11.CLIENT)
        return self._stream

    async def _answer(self, stream: ByteStream) -> tuple[int, bytes]:
        status, body = 0, b""
        while True:
            event = self._conn.next_event()
            if event is h11.NEED_DATA:
                try:
                    self._conn.receive_data(await stream.receive(READ_BYTES))
                except anyio.EndOfStream:
                    self._conn.receive_data(b"")
            elif isinstance(event, h11.Response):
                status = event.status_code
            elif isinstance(event, h11.Data):
                body = (body + bytes(event.data))[:SHOWN_BYTES]
            elif isinstance(event, h11.EndOfMessage):
                return status, body
            elif isinstance(event, h11.ConnectionClosed):
                raise anyio.EndOfStream


def _cause(error: BaseException) -> str:
    if isinstance(error, h11.RemoteProtocolError):
        return f"the answer is no HTTP ({error})"
    return cause_of(error) if isinstance(error, OSError) else "the connection was lost"
