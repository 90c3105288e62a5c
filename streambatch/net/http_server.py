"""Serves an HTTP app inside the caller's task group: no signal handlers, no thread, nothing left behind.

What a connection may take, and for how long, is for the connection class to say; a server that stops closes every
connection once that class lets it go.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Iterator, Sequence

import anyio
import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.h11_impl import H11Protocol

from streambatch.net.addresses import BACKLOG

HEADER_BYTES_MAX = 16 << 10


class HttpConnection(H11Protocol):
    """One client's connection, which may be given a deadline."""

    _expiry: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # h11 is TCP alone
        super().connection_made(transport)
        self.gone = asyncio.Event()

    def connection_lost(self, exc: Exception | None) -> None:
        self.never_expire()
        super().connection_lost(exc)
        self.gone.set()

    @property
    def expires_at(self) -> float:
        """When it is cut off, in the event loop's time."""
        return self._expiry.when() if self._expiry is not None else 0.0

    def expire_in(self, seconds: float) -> None:
        """Cut it off so many seconds from now, and not when an earlier call said."""
        self.never_expire()
        self._expiry = self.loop.call_later(seconds, self.expire)

    def never_expire(self) -> None:
        """Take back the deadline."""
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None

    def expire(self) -> None:
        """Cut it off."""
        self.transport.abort()


class HttpServer(uvicorn.Server):
    """A server that stops when it is told to, by its caller and not by a signal."""

    def __init__(
        self,
        app: Starlette,
        connection: Callable[..., HttpConnection],
        *,
        keep_alive_seconds: float,
        started: Callable[[], None],
    ) -> None:
        super().__init__(_settings(app, connection, keep_alive_seconds))
        self._started = started
        self._stopping = anyio.Event()

    async def run_until_cancelled(self, listeners: Sequence[socket.socket]) -> None:
        """Serve on listening sockets, which the caller closes; cancelled, stop and close every connection first."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._stop_when_cancelled)
            # uvicorn closes its connections at the end of `serve`, so that has to run to its end.
            with anyio.CancelScope(shield=True):
                await self.serve(list(listeners))

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        # Signals belong to the program that the server runs in; uvicorn would put its own handlers in their place.
        yield

    async def main_loop(self) -> None:
        # uvicorn's own wakes ten times a second, for a Date header and for limits that are not used here.
        self._started()
        await self._stopping.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close every connection, those with an answer on its way once it has left."""
        # asyncio forgets to close clients that it accepts in the turn in which a server closes: let them become
        # connections first, which takes two turns.
        loop = asyncio.get_running_loop()
        for listener in sockets or []:
            loop.remove_reader(listener)
        for _ in range(3):
            await asyncio.sleep(0)
        for server in self.servers:
            server.close()
        connections = [each for each in self.server_state.connections if isinstance(each, HttpConnection)]
        # All at once, then wait: each may take as long as its answer.
        for connection in connections:
            connection.shutdown()
        for connection in connections:
            await connection.gone.wait()
        for server in self.servers:
            await server.wait_closed()

    async def _stop_when_cancelled(self) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            self._stopping.set()


def _settings(app: Starlette, connection: Callable[..., HttpConnection], keep_alive_seconds: float) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=connection,  # type: ignore[arg-type]  # it is called like a class
        # An upgrade to a websocket would leave the limits of the connection class behind.
        ws="none",
        interface="asgi3",
        lifespan="off",
        log_config=None,
        log_level="error",
        access_log=False,
        # A client could else choose the address that it seems to come from.
        proxy_headers=False,
        server_header=False,
        date_header=False,
        backlog=BACKLOG,
        timeout_keep_alive=keep_alive_seconds,  # type: ignore[arg-type]  # asyncio's call_later takes any number
        # Bounds headers that never end.
        h11_max_incomplete_event_size=HEADER_BYTES_MAX,
    )
