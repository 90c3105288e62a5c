"""What the live page shows, told each second to everybody who looks at it.

A second's view is taken once and encoded once, however many follow. Followers are bounded; one
that doesn't take in what it is told is cut off by its connection's deadline, and never makes another wait.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Protocol

import anyio
import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from streambatch.web.answers import HEADERS
from streambatch.web.page.shown import shown
from streambatch.web.watch import Watch

FOLLOWERS_MAX = 32
EVERY_SECONDS = 1.0
RETRY_MILLISECONDS = 1000
"""How soon a browser connects again."""


class Streaming(Protocol):
    """A connection that may be busy with one answer for ever."""

    def streamed(self) -> None: ...


class Feed:
    """Tells each second what is known of a pipeline, while `run` runs."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self._changed = anyio.Event()
        self._event = b""
        self._is_open = True
        self._followers = 0

    @property
    def has_room(self) -> bool:
        """Whether one more may follow."""
        return self._followers < FOLLOWERS_MAX

    async def run(self) -> None:
        """Tell the followers each second until cancelled, and then what came of it."""
        try:
            while True:
                if self._followers:
                    self._tell(b"view")
                await anyio.sleep(EVERY_SECONDS)
        finally:
            self._is_open = False
            self._watch.sample()
            self._tell(b"end")

    async def follow(self) -> AsyncIterator[bytes]:
        """Yield what is known now, then each second, as server-sent events; a follower that is busy misses some."""
        yield b"retry: %d\n\n" % RETRY_MILLISECONDS + self._as_event(b"view")
        while self._is_open:
            await self._changed.wait()
            if self._is_open:
                yield self._event
        yield self._event

    @contextmanager
    def seat(self) -> Iterator[None]:
        """Count a follower while the context lasts."""
        self._followers += 1
        try:
            yield
        finally:
            self._followers -= 1

    def _tell(self, kind: bytes) -> None:
        self._event = self._as_event(kind)
        self._changed.set()
        self._changed = anyio.Event()

    def _as_event(self, kind: bytes) -> bytes:
        return b"event: %b\ndata: %b\n\n" % (kind, msgspec.json.encode(shown(self._watch.live.view())))


class EventStream(Response):
    """The answer that ends with the feed, or once its client is gone."""

    def __init__(self, feed: Feed) -> None:
        super().__init__(headers={**HEADERS, "content-type": "text/event-stream"})
        del self.headers["content-length"]
        self._feed = feed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        connection: Streaming | None = scope.get("state", {}).get("connection")
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        if scope["method"] == "GET":
            with self._feed.seat():
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(_cancel_when_gone, receive, tasks.cancel_scope)
                    await self._tell(send, connection)
                    tasks.cancel_scope.cancel()
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _tell(self, send: Send, connection: Streaming | None) -> None:
        async for event in self._feed.follow():
            if connection is not None:
                connection.streamed()
            await send({"type": "http.response.body", "body": event, "more_body": True})


async def _cancel_when_gone(receive: Receive, scope: anyio.CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        continue
    scope.cancel()
