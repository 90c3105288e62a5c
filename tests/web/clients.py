"""Real HTTP over loopback: an app served for a while, and requests to it from another thread."""

from __future__ import annotations

import http.client
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import anyio
import anyio.to_thread
import msgspec
from prometheus_client import CollectorRegistry
from starlette.applications import Starlette

from streambatch.core.clock import SystemClock
from streambatch.net.addresses import parse_address
from streambatch.observe import MetricsObserver
from streambatch.web.app import create_app
from streambatch.web.page_events import EventFeed
from streambatch.web.recent import RecentProblems
from streambatch.web.server import serve
from streambatch.web.watch import Watch
from tests.snapshots import FakePipeline

CONFIG = {
    "name": "rides",
    "source": {"rides_in": {"type": "tcp", "format": "jsonl"}},
    "batch": {"max_records": 512},
    "model": {"type": "linear", "path": "model.npz"},
    "sink": {"scores": {"type": "file", "format": "jsonl"}},
}


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()

    @property
    def json(self) -> Any:
        assert self.headers["content-type"] == "application/json"
        return msgspec.json.decode(self.body)


class Admin(NamedTuple):
    """An app, and what runs along with it."""

    app: Starlette
    watch: Watch
    feed: EventFeed


def admin_of(
    pipeline: FakePipeline | None = None,
    registry: CollectorRegistry | None = None,
    *,
    config: Mapping[str, object] = CONFIG,
    listen: str = "127.0.0.1:0",
    token: str | None = None,
) -> Admin:
    pipeline, clock = pipeline or FakePipeline(), SystemClock()
    watch = Watch(
        pipeline, MetricsObserver(), RecentProblems(clock), clock=clock, config=CONFIG, config_digest="c0ffee" * 10
    )
    feed = EventFeed(watch)
    app = create_app(
        pipeline=pipeline,
        registry=registry or CollectorRegistry(),
        effective_config=config,
        watch=watch,
        feed=feed,
        listen=listen,
        token=token,
    )
    return Admin(app, watch, feed)


def app_of(pipeline: FakePipeline | None = None, registry: CollectorRegistry | None = None) -> Starlette:
    return admin_of(pipeline, registry).app


@asynccontextmanager
async def serving(app: Starlette, listen: str = "127.0.0.1:0") -> AsyncIterator[str]:
    """Serve while the context lasts; it is the address."""
    async with anyio.create_task_group() as tasks:
        yield await tasks.start(serve, app, listen)
        tasks.cancel_scope.cancel()


async def ask(address: str, path: str, method: str = "GET", headers: Mapping[str, str] | None = None) -> Answer:
    return await anyio.to_thread.run_sync(_ask, address, path, method, headers or {})


def _ask(address: str, path: str, method: str, headers: Mapping[str, str]) -> Answer:
    connection = http.client.HTTPConnection(*parse_address(address), timeout=10)
    try:
        connection.request(method, path, headers=dict(headers))
        response = connection.getresponse()
        return Answer(response.status, {name.lower(): value for name, value in response.getheaders()}, response.read())
    finally:
        connection.close()
