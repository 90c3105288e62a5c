"""One kept HTTP connection to one server, for one request at a time.

A request is answered as a whole or it raises one of LOST, and the connection is then not used again. The answer is read
while the request is sent, since a server that refuses a large one may not read it to its end.
"""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from contextlib import suppress
from email.utils import parsedate_to_datetime
from typing import NamedTuple
from urllib.parse import SplitResult

import anyio
import h11
from anyio.abc import ByteStream

from streambatch.net.addresses import cause_of

READ_BYTES = 64 << 10
SHOWN_BYTES = 200
"""Bytes of an answer that a message shows."""
LOST = (
    anyio.BrokenResourceError,
    anyio.BusyResourceError,
    anyio.EndOfStream,
    anyio.ClosedResourceError,
    OSError,
    h11.RemoteProtocolError,
)
"""How a request fails that got no answer."""


class Answer(NamedTuple):
    """The answer of a server. text: the beginning of the body, else the name of its status.

    retry_after: seconds that it asks to be left alone for. location: where it sends us instead.
    """

    status: int
    text: str
    retry_after: float | None
    location: str

    @property
    def is_success(self) -> bool:
        return 200 <= self.status < 300


class Client:
    """Posts to one URL. where: the URL without what is secret in it. length: bytes of all payloads that were taken."""

    def __init__(self, url: SplitResult, headers: Sequence[tuple[str, str]], ca_file: str | None) -> None:
        # User and password may stand before the host, and messages must not show them.
        host = url.netloc.rpartition("@")[2]
        self.where = url._replace(netloc=host).geturl()
        self.length = 0
        self._url, self._ca_file = url, ca_file
        self._target = (url.path or "/") + (f"?{url.query}" if url.query else "")
        self._headers = [*(() if any(name.lower() == "host" for name, _ in headers) else [("Host", host)]), *headers]
        self._stream: ByteStream | None = None
        self._conn = h11.Connection(h11.CLIENT)
        self._has_answered = False

    def start(self) -> None:
        """Set `length` to 0. Raises OSError when the certificates can't be read."""
        self._tls()
        self.length = 0

    async def post(self, payload: bytes, header: tuple[str, str]) -> Answer:
        """Return the answer, of any status. Cancelled or failed, the connection is not used again."""
        is_reused = self._stream is not None
        try:
            answer = await self._try(payload, header)
        except LOST:
            # A server may close a connection that is kept at any time, also just when a request is on its way.
            if not is_reused or self._has_answered:
                raise
            answer = await self._try(payload, header)
        if answer.is_success:
            self.length += len(payload)
        return answer

    async def close(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            await anyio.aclose_forcefully(stream)

    async def _try(self, payload: bytes, header: tuple[str, str]) -> Answer:
        is_done = self._has_answered = False
        try:
            stream = self._stream or await self._connect()
            head = [*self._headers, ("Content-Length", str(len(payload))), header]
            request = h11.Request(method="POST", target=self._target, headers=head)
            blocks = [self._conn.send(request) or b"", self._conn.send(h11.Data(data=payload)) or b""]
            # No bytes, as Content-Length says where the body ends, but h11 wants to be told.
            self._conn.send(h11.EndOfMessage())
            answer, is_sent = await self._exchange(stream, blocks)
            # h11 counts as sent what was handed to it: `is_sent` says whether it left. A connection on which either
            # side is half-way can carry no further request.
            is_done = is_sent and self._conn.our_state is h11.DONE and self._conn.their_state is h11.DONE
            if is_done:
                self._conn.start_next_cycle()
            return answer
        finally:
            if not is_done:
                # Also when cancelled: half a request on a kept connection would garble the next.
                with anyio.CancelScope(shield=True):
                    await self.close()

    async def _connect(self) -> ByteStream:
        url, context = self._url, self._tls()
        assert url.hostname is not None
        port = url.port or (80 if context is None else 443)
        if context is None:
            self._stream = await anyio.connect_tcp(url.hostname, port)
        else:
            # Many servers close without TLS's closing alert, which the standard calls an error; h11 sees itself
            # whether an answer is whole.
            self._stream = await anyio.connect_tcp(
                url.hostname, port, tls=True, ssl_context=context, tls_standard_compatible=False
            )
        self._conn = h11.Connection(h11.CLIENT)
        return self._stream

    def _tls(self) -> ssl.SSLContext | None:
        """Return what a TLS connection is checked by, read again for each one, so that renewed certificates count."""
        return ssl.create_default_context(cafile=self._ca_file) if self._url.scheme == "https" else None

    async def _exchange(self, stream: ByteStream, blocks: Sequence[bytes]) -> tuple[Answer, bool]:
        """Send and receive at once. Returns the answer, and whether all was sent; success counts only if it was."""
        sent = anyio.Event()
        answer, lost = None, None
        async with anyio.create_task_group() as sending:
            sending.start_soon(_send, stream, blocks, sent)
            try:
                answer = await self._answer(stream)
            except LOST as error:
                lost = error
            # A server that refuses may not read the rest, and the sending would wait for it for ever.
            if answer is None or not answer.is_success:
                sending.cancel_scope.cancel()
        if answer is None or (answer.is_success and not sent.is_set()):
            raise lost or anyio.EndOfStream
        return answer, sent.is_set()

    async def _answer(self, stream: ByteStream) -> Answer:
        head: h11.Response | None = None
        body = b""
        while True:
            event = self._conn.next_event()
            if event is h11.NEED_DATA:
                try:
                    self._conn.receive_data(await stream.receive(READ_BYTES))
                    self._has_answered = True
                except anyio.EndOfStream:
                    # An answer without a length ends with its connection; before its first byte there is none to end.
                    if not self._has_answered:
                        raise
                    self._conn.receive_data(b"")
            elif isinstance(event, h11.Response):
                head = event
            elif isinstance(event, h11.Data):
                # The answer is read to its end, since the connection is kept, but only what a message shows is held.
                body = (body + bytes(event.data))[:SHOWN_BYTES]
            elif isinstance(event, h11.EndOfMessage) and head is not None:
                return _answer_of(head, body)
            elif isinstance(event, h11.ConnectionClosed):
                raise anyio.EndOfStream


def why_lost(error: BaseException) -> str:
    """Return why there was no answer, for a person."""
    if isinstance(error, h11.RemoteProtocolError):
        return f"the answer is no HTTP ({error})"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted ({error.verify_message})"
    if isinstance(error, ssl.SSLError):
        return f"TLS failed ({error.reason or error})"
    return cause_of(error) if isinstance(error, OSError) else "the connection was lost"


async def _send(stream: ByteStream, blocks: Sequence[bytes], sent: anyio.Event) -> None:
    with suppress(*LOST):
        for block in blocks:
            await stream.send(block)
        sent.set()


def _answer_of(head: h11.Response, body: bytes) -> Answer:
    headers = {bytes(name): bytes(value).decode("latin-1") for name, value in head.headers}
    text = body.decode(errors="replace").strip() or bytes(head.reason).decode("latin-1")
    return Answer(head.status_code, text, _retry_after(headers), headers.get(b"location", ""))


def _retry_after(headers: dict[bytes, str]) -> float | None:
    """Return what Retry-After says, in seconds; a date counts from the answer's own, so that no two clocks meet."""
    value = headers.get(b"retry-after", "").strip()
    try:
        if value.isdecimal():
            return float(int(value))
        until, now = parsedate_to_datetime(value), parsedate_to_datetime(headers.get(b"date", ""))
        return max(0.0, (until - now).total_seconds())
    except (TypeError, ValueError, OverflowError):
        return None
