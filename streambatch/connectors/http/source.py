"""Records from HTTP clients: `POST /records` with one record a line. A request is one partition.

Records are taken in while the body comes, and the answer says how many. If something goes wrong half-way, the first
`received` records of the request are in and no other. If the client goes away, its last record is cut off and dies.
With a spool a request counts whole or not at all: the answer comes once all of it is durable, and a repeated
`Idempotency-Key` gets the first answer again.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import KW_ONLY
from functools import partial
from typing import Annotated

import anyio
import msgspec
from pydantic import Field
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from streambatch.codecs.compression import Corrupt
from streambatch.codecs.formats import StreamFormat, framing_for_format
from streambatch.codecs.unpacking import DECOMPRESSORS, TooLarge, Unpacking
from streambatch.connectors.http.connection import IngestConnection
from streambatch.core.chunks import Partition
from streambatch.core.errors import OptionError
from streambatch.core.feed import Feed
from streambatch.core.intake import Intake, StoredRequest
from streambatch.core.leases import RecordLeases, leases_of
from streambatch.core.options import options
from streambatch.core.parts import Claim, Site, Source
from streambatch.core.spooling import KeyReused, RequestTooLarge, SpoolFull, check_spool
from streambatch.core.units import Duration, Size, format_size
from streambatch.net.addresses import ListenAddress, parse_address
from streambatch.net.http_server import HttpServer
from streambatch.net.listening import IdleTimeout, ListeningReader, MaxConnections, MaxRecordBytes, Spool, bind_for

PATH = "/records"
KEY_HEADER = "idempotency-key"
RETRY_AFTER_SECONDS = 1
"""When a client that was refused for want of room is asked to come again."""
GRACE_SECONDS = 2.0
"""How long, at a stop, requests may go on sending."""
BODIES_MIN = 4
"""A spool has room for so many of the largest bodies at least."""
KEY_LENGTH_MAX = 255
"""Characters an idempotency key may have."""

CLOSE = {"connection": "close"}


class BrokenTransfer(Exception):
    """A client stopped sending HTTP within its request."""


@options
class HttpSource(Source):
    """Listens on an address and takes in what clients post to /records."""

    listen: ListenAddress
    """Host and port for clients: `127.0.0.1:9000`, `[::1]:9000`; `0.0.0.0:9000` for every interface."""
    _: KW_ONLY
    name: str = "http"
    max_connections: MaxConnections = 1024
    idle_timeout: IdleTimeout = 60.0
    format: StreamFormat = "jsonl"
    """How the body of a request becomes records."""
    max_record_bytes: MaxRecordBytes = 1 << 20
    max_body_bytes: Annotated[Size, Field(ge=1)] = 64 << 20
    """A request whose body has more, unpacked, is refused from there on."""
    spool: Spool = None
    dedupe_window: Annotated[Duration, Field(gt=0)] | None = None
    """With a spool: for how long a repeated `Idempotency-Key` is answered without storing the request again; 24 hours
    if absent. Of more than 262144 keys the youngest are remembered."""

    def __post_init__(self) -> None:
        parse_address(self.listen)
        check_spool(self.spool, max_record_bytes=self.max_record_bytes)
        if self.spool is None and self.dedupe_window is not None:
            raise OptionError("dedupe_window", f"{self.dedupe_window:g} s, and no spool", "only with a spool")
        if self.spool is not None and self.spool.max_bytes < BODIES_MIN * self.max_body_bytes:
            least = format_size(BODIES_MIN * self.max_body_bytes)
            found = format_size(self.spool.max_bytes)
            raise OptionError("spool.max_bytes", found, f"at least {least}, for max_body_bytes")

    def build(self, site: Site) -> HttpReader:
        return HttpReader(self)

    def claims(self) -> Iterable[Claim]:
        return [Claim("tcp", "listen", self.listen)]


class HttpReader(ListeningReader):
    """Reads the requests of the clients that connect to an address."""

    def __init__(self, options: HttpSource) -> None:
        super().__init__(options.name)
        self._options = options

    async def run(self, intake: Intake) -> None:
        """Serve clients until cancelled; requests under way then have GRACE_SECONDS to end. Needs asyncio.

        Raises SourceError when it can't listen, and what `put` raises when the pipeline gives up.
        """
        options = self._options
        leases = leases_of(intake.memory)
        # Before it listens: a source whose connections the budget can't carry must not let a client in.
        with leases.shared_by(self.name, options.max_connections, options.max_record_bytes), ExitStack() as opened:
            listeners, address = await bind_for(self.name, options.listen)
            for sock in listeners:
                opened.enter_context(sock)
            try:
                listening = partial(self._listens_on, address)
                await Requests(options, intake, leases).serve(listeners, listening)
            finally:
                self._listens_no_more()


class Requests:
    """The requests of one source, from its listeners to its cancellation."""

    def __init__(self, options: HttpSource, intake: Intake, leases: RecordLeases) -> None:
        self._options, self._intake, self._leases = options, intake, leases
        self._framing = framing_for_format(options.format)
        self._begun = 0
        self._scopes: set[anyio.CancelScope] = set()
        self._ended: anyio.Event | None = None
        self._is_stopping = False
        self._failure: Exception | None = None

    async def serve(self, listeners: Sequence[socket.socket], listening: Callable[[], None]) -> None:
        """Answer until cancelled; then let requests under way end, and close everything."""
        options = self._options
        connection = partial(IngestConnection, options, self._intake.observer, self._leases.allowance)
        server = HttpServer(self._app(), connection, keep_alive_seconds=options.idle_timeout, started=listening)
        async with anyio.create_task_group() as self._tasks:
            self._tasks.start_soon(self._end_when_cancelled)
            await server.run_until_cancelled(listeners)
        if self._failure is not None:
            raise self._failure

    def _app(self) -> Starlette:
        route = Route(PATH, self._post, methods=["POST"])
        app = Starlette(routes=[route], exception_handlers={HTTPException: _as_json})
        # Else /records/ is answered with a redirect to an address made of the header Host, which may be anything.
        app.router.redirect_slashes = False
        return app

    async def _end_when_cancelled(self) -> None:
        try:
            # The server is shielded from the cancellation, so that a task of its own has to notice it.
            await anyio.sleep_forever()
        finally:
            self._is_stopping = True
            with anyio.CancelScope(shield=True):
                with anyio.move_on_after(GRACE_SECONDS):
                    await self._until_none_is_under_way()
                for scope in self._scopes:
                    scope.cancel()
                # What is being put was read: the pipeline goes on until it has it, or gives up.
                await self._until_none_is_under_way()

    async def _until_none_is_under_way(self) -> None:
        while self._scopes:
            self._ended = anyio.Event()
            await self._ended.wait()

    async def _post(self, request: Request) -> Response:
        refusal = self._refusal(request)
        if refusal is not None:
            return refusal
        body: _Body | None = None
        # A scope for each request: at a stop the late ones are ended one by one, and each still gets an answer.
        with anyio.CancelScope() as scope:
            self._scopes.add(scope)
            try:
                stored = await self._intake.begin(request.headers.get(KEY_HEADER))
                body = self._body(request, stored)
                return await self._take_in(request, body)
            finally:
                if body is not None:
                    body.release()
                self._scopes.remove(scope)
                if self._ended is not None:
                    self._ended.set()
        return _answer(503, body.received if body is not None else 0, "the source is stopping", CLOSE)

    def _refusal(self, request: Request) -> Response | None:
        """Return the answer to a request that is not even read."""
        headers, size_max = request.headers, self._options.max_body_bytes
        if self._is_stopping:
            return _answer(503, 0, "the source is stopping", CLOSE)
        encoding, content_type = _encoding(request), headers.get("content-type", "").lower()
        if encoding not in ("identity", *DECOMPRESSORS):
            allowed = ", ".join(name for name in DECOMPRESSORS if not name.startswith("x-"))
            problem = f"content-encoding: found {encoding}; allowed: {allowed} or none"
            return _answer(415, 0, problem, {"accept-encoding": allowed})
        if content_type.startswith("multipart/"):
            found = content_type.partition(";")[0]
            return _answer(415, 0, f"content-type: found {found}; allowed: any but multipart, as the body is records")
        if self._options.spool is not None and not _is_key(headers.get(KEY_HEADER)):
            return _answer(400, 0, f"{KEY_HEADER}: expected 1 to {KEY_LENGTH_MAX} printable characters of ASCII")
        # h11 has let only digits through. A body that announces no length is counted as it comes, see `Unpacking`.
        if int(headers.get("content-length", "0")) > size_max:
            self._intake.refused(1, "size")
            return _answer(413, 0, f"the body has more than {format_size(size_max)}")
        # Answered at once: to a client that is left waiting, a full queue looks like a dead server.
        if not self._intake.has_room:
            self._intake.refused(1, "full")
            return _answer(429, 0, "the queue is full", {"retry-after": str(RETRY_AFTER_SECONDS)})
        return None

    def _body(self, request: Request, stored: StoredRequest | None) -> _Body:
        options = self._options
        self._begun += 1
        partition = Partition(options.name, f"{self._intake.run_id}-{self._begun}")
        framer = self._framing.framer(partition, max_record_bytes=options.max_record_bytes)
        feed = Feed(stored or self._intake, framer, options.name)
        unpacking = Unpacking(_encoding(request), options.max_body_bytes)
        return _Body(feed, unpacking, self._leases, options.max_record_bytes, stored)

    async def _take_in(self, request: Request, body: _Body) -> Response:
        try:
            await self._read(request, body)
        except (Corrupt, BrokenTransfer) as error:
            return _answer(400, body.received, str(error), CLOSE)
        except (TooLarge, RequestTooLarge) as error:
            self._intake.refused(1, "size")
            return _answer(413, body.received, str(error))
        except SpoolFull as error:
            self._intake.refused(1, "full")
            return _answer(429, 0, str(error), {"retry-after": str(RETRY_AFTER_SECONDS)})
        except KeyReused as error:
            return _answer(422, 0, str(error))
        except ClientDisconnect:
            await body.cut_off()
            # It goes nowhere, but an app has to return one.
            return Response()
        except TimeoutError:
            self._intake.observer.connection_rejected(self._options.name, "timeout")
            await body.cut_off()
            return _answer(408, body.received, f"nothing came for {self._options.idle_timeout:g} s", CLOSE)
        except Exception as error:
            # Raised here it would be one more answer 500. It is kept for `serve`, which ends the source with it.
            self._failure = self._failure or error
            self._tasks.cancel_scope.cancel()
            return _answer(503, body.received, "the pipeline has failed", CLOSE)
        return _answer(200, body.received)

    async def _read(self, request: Request, body: _Body) -> None:
        more = True
        while more:
            # Memory first: what `receive` returns is held from then on.
            await body.room()
            with anyio.fail_after(self._options.idle_timeout):
                message = await request.receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            await body.take(message.get("body", b""))
            more = message.get("more_body", False)
        # A connection with a fault ends the body like a whole one, since the handler can be woken no other way.
        connection: IngestConnection = request.state.connection
        if connection.fault is not None:
            raise BrokenTransfer(connection.fault)
        await body.end()


class _Body:
    """The records of one request."""

    def __init__(
        self,
        feed: Feed,
        unpacking: Unpacking,
        leases: RecordLeases,
        max_record_bytes: int,
        stored: StoredRequest | None,
    ) -> None:
        self._feed, self._unpacking, self._leases, self._stored = feed, unpacking, leases, stored
        self._max_record_bytes = max_record_bytes
        self._lent = self._committed = 0

    @property
    def received(self) -> int:
        """Records taken in so far: with a spool none until all are durable."""
        return self._committed if self._stored is not None else self._feed.records

    async def room(self) -> None:
        """Wait until there is memory for what comes next, and for the record it belongs to."""
        holds_little = self._feed.pending * 2 <= self._leases.allowance
        if holds_little and self._lent:
            self._give_back()
        elif not holds_little and not self._lent:
            self._lent = await self._leases.take(self._max_record_bytes)
        # One byte, since a client doesn't say how much comes next. What a read brings beyond it is taken at once, and
        # bounded by the connection's `max_size`.
        await self._feed.room(1)

    async def take(self, block: bytes) -> None:
        """Put the records that a block completes. Raises TooLarge and Corrupt."""
        for piece in self._unpacking.pieces(block):
            await self._feed.push(piece)
            # After each piece: a small block may unpack to many times its size.
            await self.room()

    async def end(self) -> None:
        """Put the last record; with a spool, store the request. Raises Corrupt for half a body, and KeyReused."""
        self._unpacking.end()
        await self._feed.end()
        if self._stored is not None:
            # Only now: a request that is stored has no records before all of it is durable.
            self._committed = await self._stored.commit()

    async def cut_off(self) -> None:
        """Put what came of the last record as one that was cut off."""
        # A request that is stored counts whole or not at all: what came of it is discarded.
        if self._stored is None:
            await self._feed.end(cut_off=True)

    def release(self) -> None:
        """Give back all that is still held."""
        self._feed.release()
        if self._stored is not None:
            self._stored.discard()
        self._give_back()

    def _give_back(self) -> None:
        lent, self._lent = self._lent, 0
        self._leases.give(lent)


def _is_key(key: str | None) -> bool:
    return key is None or (0 < len(key) <= KEY_LENGTH_MAX and key.isascii() and key.isprintable())


def _encoding(request: Request) -> str:
    return request.headers.get("content-encoding", "").strip().lower() or "identity"


def _answer(status: int, received: int, error: str | None = None, headers: Mapping[str, str] | None = None) -> Response:
    content: dict[str, object] = {"received": received}
    if error is not None:
        content["error"] = error
    return Response(msgspec.json.encode(content), status, headers, media_type="application/json")


async def _as_json(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    found = f"{request.method}; allowed: POST" if error.status_code == 405 else f"nothing there; allowed: POST {PATH}"
    # Not `request.url`: that is made with the header Host, which may be anything.
    return _answer(error.status_code, 0, f"{request.scope['path']}: found {found}", error.headers)
