"""Send the view that the live page shows to every open page, once a second, as server-sent events.

A view is taken and encoded once a second, however many pages follow. The number of followers is bounded. A follower
that doesn't read is cut off by the deadline of its connection, and never makes another wait.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Protocol

import anyio
import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from streambatch.core.signal import Signal
from streambatch.web.answers import HEADERS
from streambatch.web.page.shown import shown
from streambatch.web.watch import Watch

FOLLOWERS_MAX = 32
EVERY_SECONDS = 1.0
RETRY_MILLISECONDS = 1000
"""How long a browser waits before it connects again."""


class StreamedConnection(Protocol):
    """A connection whose answer may have no end, so that its deadline moves with each part."""

    def streamed(self) -> None: ...


class EventFeed:
    """The views of one pipeline as server-sent events. `run` publishes them; `follow` yields them to one page."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self._changed = Signal()
        self._event = b""
        self._is_open = True
        self._followers = 0

    @property
    def has_room(self) -> bool:
        """Whether another page may follow."""
        return self._followers < FOLLOWERS_MAX

    async def run(self) -> None:
        """Publish a view each second until cancelled, then a last one that says how the run ended."""
        try:
            while True:
                # Without a page to see it, a view is not worth the event loop's time.
                if self._followers:
                    self._publish(b"view")
                await anyio.sleep(EVERY_SECONDS)
        finally:
            self._is_open = False
            self._watch.sample()
            self._publish(b"end")

    async def follow(self) -> AsyncIterator[bytes]:
        """Yield the current view, then each published one, as server-sent events. A slow follower skips views."""
        yield b"retry: %d\n\n" % RETRY_MILLISECONDS + self._as_event(b"view")
        while self._is_open:
            await self._changed.wait()
            if self._is_open:
                yield self._event
        yield self._event

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Count one follower while the context lasts."""
        self._followers += 1
        try:
            yield
        finally:
            self._followers -= 1

    def _publish(self, kind: bytes) -> None:
        self._event = self._as_event(kind)
        self._changed.notify()

    def _as_event(self, kind: bytes) -> bytes:
        return b"event: %b\ndata: %b\n\n" % (kind, msgspec.json.encode(shown(self._watch.live_view.view())))


class EventStream(Response):
    """An answer that goes on until the feed ends or its client disconnects."""

    def __init__(self, feed: EventFeed) -> None:
        super().__init__(headers={**HEADERS, "content-type": "text/event-stream"})
        del self.headers["content-length"]
        self._feed = feed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        connection: StreamedConnection | None = scope.get("state", {}).get("connection")
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        if scope["method"] == "GET":
            # Counted only while events are sent: a HEAD request gets this answer as well.
            with self._feed.counted():
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(_cancel_when_gone, receive, tasks.cancel_scope)
                    await self._send_events(send, connection)
                    tasks.cancel_scope.cancel()
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send_events(self, send: Send, connection: StreamedConnection | None) -> None:
        async for event in self._feed.follow():
            if connection is not None:
                connection.streamed()
            await send({"type": "http.response.body", "body": event, "more_body": True})


async def _cancel_when_gone(receive: Receive, scope: anyio.CancelScope) -> None:
    # A client that goes away is noticed here only: an event that is sent to nowhere raises no error.
    while (await receive())["type"] != "http.disconnect":
        continue
    scope.cancel()
