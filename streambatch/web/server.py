"""Serve the admin app over HTTP inside the caller's task group.

A client that holds connections half-open or doesn't read its answers can't keep a probe out. Connections are bounded,
the one that has waited longest makes room for a new one, and each has a deadline to send its request and read the
answer. An endless answer has a deadline for each of its parts.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from ipaddress import ip_address
from typing import Any

import anyio
import uvicorn
from anyio.abc import TaskStatus
from starlette.applications import Starlette
from uvicorn.server import ServerState

from streambatch.core.errors import ConfigError, ConfigProblem
from streambatch.net.addresses import address_of, bind, cause_of
from streambatch.net.http_server import HttpConnection, HttpServer

CONNECTIONS_MAX = 128
KEEP_ALIVE_SECONDS = 5
REQUEST_SECONDS = 10.0
"""Time a client has to send a request, and again to read its answer."""
GRACE_SECONDS = 1.0
"""Time that answers have to be sent once serving is cancelled."""


async def serve(app: Starlette, listen: str, *, task_status: TaskStatus[str] = anyio.TASK_STATUS_IGNORED) -> None:
    """Serve until cancelled. Reports as started, with the address as `host:port`, once clients can connect.

    listen: `host:port`; the system chooses a free port for 0. Needs asyncio. When cancelled, closes every connection;
    those with an unfinished answer after at most GRACE_SECONDS. Raises ConfigError if the address can't be bound.
    """
    with ExitStack() as opened:
        try:
            listeners = [opened.enter_context(sock) for sock in await bind(listen)]
        except (OSError, UnicodeError) as error:
            raise ConfigError([_unusable(listen, error)]) from error
        address = address_of(listeners[0])
        server = HttpServer(
            app,
            partial(_AdminConnection, _is_loopback(listeners)),
            keep_alive_seconds=KEEP_ALIVE_SECONDS,
            started=lambda: task_status.started(address),
        )
        await server.run_until_cancelled(listeners)


class _AdminConnection(HttpConnection):
    """One client's connection, with a deadline. Handlers get it as `request.state.connection`.

    is_loopback: whether the port can be reached from this machine only.
    """

    def __init__(
        self,
        is_loopback: bool,
        *,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, {**app_state, "connection": self}, _loop)
        self.is_loopback = is_loopback
        self._is_streaming = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # h11 is TCP alone
        super().connection_made(transport)
        self.expire_in(REQUEST_SECONDS)
        if len(self.connections) > CONNECTIONS_MAX:
            self._make_room()

    def streamed(self) -> None:
        """Move the deadline: the client has read the part before, and has the whole time for the next one."""
        self._is_streaming = True
        self.expire_in(REQUEST_SECONDS)

    def on_response_complete(self) -> None:
        self._is_streaming = False
        self.expire_in(REQUEST_SECONDS)
        super().on_response_complete()

    def shutdown(self) -> None:
        self.expire_in(GRACE_SECONDS)
        super().shutdown()

    def _make_room(self) -> None:
        """Cut off the connection that has waited longest; one that receives events goes last."""
        others = [each for each in self.connections if isinstance(each, _AdminConnection) and each is not self]
        oldest = min(others, key=lambda each: (each._is_streaming, each.expires_at))
        # Removed at once: its loss is only noticed later, and until then the next connection would choose it again.
        self.connections.discard(oldest)
        oldest.transport.abort()


def _is_loopback(listeners: Sequence[socket.socket]) -> bool:
    return all(ip_address(listener.getsockname()[0].partition("%")[0]).is_loopback for listener in listeners)


def _unusable(listen: str, error: OSError | UnicodeError) -> ConfigProblem:
    found = f"{listen} ({cause_of(error).lower()})"
    return ConfigProblem("http.listen", found, "a free address of this machine, or 'off'")
