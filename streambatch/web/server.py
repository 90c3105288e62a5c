"""Serves the admin app over HTTP inside the caller's task group: no signal handlers, no thread, nothing left behind.

Whoever holds connections half-open or won't take in answers can't keep a probe out: connections are bounded, the one
that has waited longest makes room for a new one, and each has a deadline to send its request and take in the answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
from collections.abc import Iterator

import anyio
import uvicorn
from anyio.abc import TaskStatus
from starlette.applications import Starlette
from uvicorn.protocols.http.h11_impl import H11Protocol

from streambatch.errors import ConfigError, ConfigProblem
from streambatch.ingest.tcp import format_address, parse_address

CONNECTIONS_MAX = 128
BACKLOG = 256
HEADER_BYTES_MAX = 16 << 10
KEEP_ALIVE_SECONDS = 5
REQUEST_SECONDS = 10.0
"""How long a connection may take over a request, or over an answer that was made."""
GRACE_SECONDS = 1.0
"""How long answers may take to leave once serving is cancelled."""


async def serve(app: Starlette, listen: str, *, task_status: TaskStatus[str] = anyio.TASK_STATUS_IGNORED) -> None:
    """Serve until cancelled; started, with the address as `host:port`, once clients can connect.

    listen: `host:port`; with port 0 the system chooses. Needs asyncio. Cancelled, it closes every connection, those
    with an answer on its way after at most GRACE_SECONDS. Raises ConfigError when it can't have the address.
    """
    with contextlib.ExitStack() as opened:
        listeners = await _listen(listen, opened)
        address = format_address(*listeners[0].getsockname()[:2])
        server = _Server(_settings(app), address, task_status)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(server.stop_when_cancelled)
            with anyio.CancelScope(shield=True):
                await server.serve(listeners)


def _settings(app: Starlette) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=_Connection,
        ws="none",
        interface="asgi3",
        lifespan="off",
        log_config=None,
        log_level="error",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        date_header=False,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        h11_max_incomplete_event_size=HEADER_BYTES_MAX,
    )


class _Connection(H11Protocol):
    """One client's connection, with a deadline."""

    _expiry: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.gone = asyncio.Event()
        self._expire_in(REQUEST_SECONDS)
        if len(self.connections) > CONNECTIONS_MAX:
            self._make_room()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._expiry is not None:
            self._expiry.cancel()
        super().connection_lost(exc)
        self.gone.set()

    def on_response_complete(self) -> None:
        self._expire_in(REQUEST_SECONDS)
        super().on_response_complete()

    def shutdown(self) -> None:
        self._expire_in(GRACE_SECONDS)
        super().shutdown()

    @property
    def expires_at(self) -> float:
        """When it is cut off, in the event loop's time."""
        return self._expiry.when() if self._expiry is not None else 0.0

    def _expire_in(self, seconds: float) -> None:
        if self._expiry is not None:
            self._expiry.cancel()
        self._expiry = self.loop.call_later(seconds, self.transport.abort)

    def _make_room(self) -> None:
        """Cut off the connection that has waited longest."""
        others = [each for each in self.connections if isinstance(each, _Connection) and each is not self]
        oldest = min(others, key=lambda each: each.expires_at)
        self.connections.discard(oldest)
        oldest.transport.abort()


class _Server(uvicorn.Server):
    """A server that stops when it is told to, by its caller and not by a signal."""

    def __init__(self, config: uvicorn.Config, address: str, task_status: TaskStatus[str]) -> None:
        super().__init__(config)
        self._address, self._task_status = address, task_status
        self._stopping = anyio.Event()

    async def stop_when_cancelled(self) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            self._stopping.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def main_loop(self) -> None:
        self._task_status.started(self._address)
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
        connections = [each for each in self.server_state.connections if isinstance(each, _Connection)]
        for connection in connections:
            connection.shutdown()
        for connection in connections:
            await connection.gone.wait()
        for server in self.servers:
            await server.wait_closed()


async def _listen(listen: str, opened: contextlib.ExitStack) -> list[socket.socket]:
    """Return a listening socket for every address of the host, all on one port; `opened` closes them."""
    host, port = parse_address(listen)
    listeners: list[socket.socket] = []
    missing: OSError | None = None
    try:
        for family, _, _, _, address in await anyio.getaddrinfo(host, port, type=socket.SOCK_STREAM):
            try:
                listener = socket.create_server((address[0], port, *address[2:]), family=family, backlog=BACKLOG)
            except OSError as error:
                # A name such as localhost often has an IPv6 address where the machine has no IPv6.
                if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                    raise
                missing = error
            else:
                listeners.append(opened.enter_context(listener))
                port = listener.getsockname()[1]
        if missing is not None and not listeners:
            raise missing
    except (OSError, UnicodeError) as error:
        raise ConfigError([_unusable(listen, error)]) from error
    return listeners


def _unusable(listen: str, error: OSError | UnicodeError) -> ConfigProblem:
    cause = str(error)
    if isinstance(error, OSError) and error.errno is not None:
        cause = str(error.strerror) if isinstance(error, socket.gaierror) else os.strerror(error.errno)
    return ConfigProblem("http.listen", f"{listen} ({cause.lower()})", "a free address of this machine, or 'off'")
