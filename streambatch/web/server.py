"""Serves the admin app over HTTP inside the caller's task group.

Whoever holds connections half-open or won't take in answers can't keep a probe out: connections are bounded, the one
that has waited longest makes room for a new one, and each has a deadline to send its request and take in the answer.
"""

from __future__ import annotations

import asyncio
from contextlib import ExitStack

import anyio
from anyio.abc import TaskStatus
from starlette.applications import Starlette

from streambatch.addresses import address_of, bind, cause_of
from streambatch.errors import ConfigError, ConfigProblem
from streambatch.serving import HttpConnection, HttpServer

CONNECTIONS_MAX = 128
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
    with ExitStack() as opened:
        try:
            listeners = [opened.enter_context(sock) for sock in await bind(listen)]
        except (OSError, UnicodeError) as error:
            raise ConfigError([_unusable(listen, error)]) from error
        address = address_of(listeners[0])
        server = HttpServer(
            app, _Connection, keep_alive_seconds=KEEP_ALIVE_SECONDS, started=lambda: task_status.started(address)
        )
        await server.run_until_cancelled(listeners)


class _Connection(HttpConnection):
    """One client's connection, with a deadline."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.expire_in(REQUEST_SECONDS)
        if len(self.connections) > CONNECTIONS_MAX:
            self._make_room()

    def on_response_complete(self) -> None:
        self.expire_in(REQUEST_SECONDS)
        super().on_response_complete()

    def shutdown(self) -> None:
        self.expire_in(GRACE_SECONDS)
        super().shutdown()

    def _make_room(self) -> None:
        """Cut off the connection that has waited longest."""
        others = [each for each in self.connections if isinstance(each, _Connection) and each is not self]
        oldest = min(others, key=lambda each: each.expires_at)
        self.connections.discard(oldest)
        oldest.transport.abort()


def _unusable(listen: str, error: OSError | UnicodeError) -> ConfigProblem:
    found = f"{listen} ({cause_of(error).lower()})"
    return ConfigProblem("http.listen", found, "a free address of this machine, or 'off'")
