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

from streambatch.addresses import parse_address
from streambatch.web.app import create_app
from streambatch.web.server import serve
from tests.snapshots import FakePipeline

CONFIG = {"name": "rides", "model": {"path": "model.npz"}}


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


def app_of(pipeline: FakePipeline | None = None, registry: CollectorRegistry | None = None) -> Starlette:
    return create_app(
        pipeline=pipeline or FakePipeline(), registry=registry or CollectorRegistry(), effective_config=CONFIG
    )


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
