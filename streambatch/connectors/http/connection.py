"""One client's HTTP connection at a source: bounded in number, in what it holds, and in how long it keeps silent.

Between two reads it holds no more than one read brought: reading stops until the request's handler asks for more.
"""

from __future__ import annotations

import asyncio
from typing import Any, Protocol

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import RequestResponseCycle
from uvicorn.server import ServerState

from streambatch.core.events import Observer
from streambatch.net.http_server import HttpConnection

LINGER_SECONDS = 5.0
"""How long the rest of a request that was answered early is thrown away, so that its client gets to see the answer."""


class Host(Protocol):
    """The source that a connection belongs to."""

    @property
    def name(self) -> str: ...

    @property
    def max_connections(self) -> int: ...

    @property
    def idle_timeout(self) -> float: ...


class IngestConnection(HttpConnection):
    """A connection that tells the observer of itself. Handlers find it as `request.state.connection`."""

    def __init__(
        self,
        host: Host,
        observer: Observer,
        read_bytes: int,
        *,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, {**app_state, "connection": self}, _loop)
        self._host, self._observer, self._read_bytes = host, observer, read_bytes
        self._is_counted = False
        self.fault: str | None = None
        """What was wrong with the transport of the request under way."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # of TCP, not any
        super().connection_made(transport)
        # `super()` has added this connection to them.
        if len(self.connections) > self._host.max_connections:
            self._observer.connection_rejected(self._host.name, "limit")
            transport.abort()
            return
        # How much asyncio reads at once, 256 KiB by default. Not every loop's transport has it: uvloop's may not.
        if hasattr(transport, "max_size"):
            transport.max_size = self._read_bytes
        self._is_counted = True
        self._observer.connection_opened(self._host.name)
        self.expire_in(self._host.idle_timeout)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        # One that was rejected was never reported as opened.
        if self._is_counted:
            self._observer.connection_closed(self._host.name)

    def handle_events(self) -> None:
        # After a fault h11 can't find where the next request begins.
        if self.fault is not None:
            return
        super().handle_events()
        if self._is_answering:
            # While a request is taken in, its handler watches over the client's silence.
            self.never_expire()
            # uvicorn itself stops reading only when more than 64 KiB wait for the handler.
            if self.cycle.body:
                self.flow.pause_reading()

    def on_response_complete(self) -> None:
        # Looked at first: `super()` starts the next cycle, in which h11 has forgotten this request.
        is_whole = self.conn.their_state in (h11.DONE, h11.MUST_CLOSE, h11.CLOSED)
        self.expire_in(self._host.idle_timeout if is_whole else LINGER_SECONDS)
        super().on_response_complete()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP; within a request that is being taken in, the answer is its handler's."""
        if not self._is_answering:
            super().send_400_response(msg)
            return
        # The handler waits for the rest of the body: end it for the handler, which then finds the fault and answers.
        self.fault = "the request's transfer encoding is broken"
        self.cycle.keep_alive = False
        self.cycle.more_body = False
        self.cycle.message_event.set()

    def expire(self) -> None:
        # A kept connection that sends nothing between two requests ends in order. Only one within a request was cut
        # off.
        if self.conn.their_state is not h11.IDLE or self.conn.trailing_data[0]:
            self._observer.connection_rejected(self._host.name, "timeout")
        super().expire()

    @property
    def _is_answering(self) -> bool:
        cycle: RequestResponseCycle | None = self.cycle
        return cycle is not None and not cycle.response_complete
