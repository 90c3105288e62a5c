"""What the live page is told, as it comes over a real connection."""

from __future__ import annotations

import json
import socket
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from streambatch.net.addresses import parse_address
from streambatch.web import page_events as module
from streambatch.web import server
from tests.leaks import tasks_alive
from tests.snapshots import FakePipeline, snapshot_of
from tests.web.clients import Admin, admin_of, ask, serving

REQUEST = b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n"
NOT_READY = snapshot_of(not_ready=["sink scores: <b>a write</b> has been waiting for 7 s"])

pytestmark = [pytest.mark.anyio, pytest.mark.parametrize("anyio_backend", ["asyncio"])]


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "EVERY_SECONDS", 0.01)


class Follower:
    """A client that reads events as they come."""

    def __init__(self, address: str, opened: ExitStack) -> None:
        self.socket = opened.enter_context(socket.create_connection(parse_address(address), timeout=10))
        self.socket.setblocking(False)
        self.socket.send(REQUEST)
        self._received = b""

    async def event(self, kind: str) -> Any:
        """Return what the next event of a kind says."""
        while True:
            name, data = (await self._until(b"\n\n")).decode().rpartition("event: ")[2].split("\ndata: ")
            if name == kind:
                return json.loads(data)

    async def end(self) -> bytes:
        """Return what is left until the server lets go."""
        with anyio.fail_after(10):
            while await self._receive():
                continue
        return self._received

    async def _until(self, mark: bytes) -> bytes:
        with anyio.fail_after(10):
            while mark not in self._received.partition(b"data: ")[2]:
                assert await self._receive(), self._received
        head, _, rest = self._received.partition(b"data: ")
        data, _, self._received = rest.partition(mark)
        return head + b"data: " + data

    async def _receive(self) -> bytes:
        await anyio.wait_readable(self.socket)
        try:
            block = self.socket.recv(1 << 16)
        except ConnectionResetError:
            return b""
        self._received += block
        return block


@asynccontextmanager
async def fed(pipeline: FakePipeline | None = None) -> AsyncIterator[tuple[str, Admin]]:
    """Serve an app whose feed runs; it is the address and what is served there."""
    admin = admin_of(pipeline)
    admin.watch.sample()
    async with anyio.create_task_group() as along, serving(admin.app) as address:
        along.start_soon(admin.feed.run)
        yield address, admin
        along.cancel_scope.cancel()


async def test_what_is_known_comes_at_once_and_news_after_it() -> None:
    pipeline = FakePipeline()
    with ExitStack() as opened:
        async with fed(pipeline) as (address, admin):
            follower = Follower(address, opened)
            view = await follower.event("view")
            assert (view["html"]["state"], view["tone"]["state"]) == ("Ready", "good")
            pipeline.now = NOT_READY
            admin.watch.sample()
            while view["html"]["state"] == "Ready":
                view = await follower.event("view")
    assert (view["html"]["state"], view["tone"]["state"]) == ("Not ready", "bad")
    assert view["html"]["reasons"] == "<li>sink scores: &lt;b&gt;a write&lt;/b&gt; has been waiting for 7 s</li>"


async def test_it_ends_with_the_feed_and_says_what_came_of_it() -> None:
    pipeline, before = FakePipeline(), tasks_alive()
    with ExitStack() as opened:
        async with fed(pipeline) as (address, _):
            follower = Follower(address, opened)
            await follower.event("view")
            pipeline.now = snapshot_of(state="stopped", not_ready=["the pipeline is stopped"])
        assert (await follower.event("end"))["html"]["state"] == "Stopped"
        assert (await follower.end()).endswith(b"0\r\n\r\n")
    assert tasks_alive() == before


async def test_a_follower_that_goes_is_forgotten() -> None:
    with ExitStack() as opened:
        async with fed() as (address, admin):
            before = tasks_alive()
            for _ in range(3 * module.FOLLOWERS_MAX):
                follower = Follower(address, opened)
                await follower.event("view")
                follower.socket.close()
            while tasks_alive() > before:
                await anyio.lowlevel.checkpoint()
            assert admin.feed.has_room


async def test_followers_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FOLLOWERS_MAX", 2)
    with ExitStack() as opened:
        async with fed() as (address, _):
            for _ in range(2):
                await Follower(address, opened).event("view")
            answer = await ask(address, "/events")
            assert (answer.status, answer.headers["retry-after"]) == (503, "5")
            assert (await ask(address, "/livez")).status == 200


async def test_one_that_takes_nothing_in_is_cut_off_and_holds_up_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "REQUEST_SECONDS", 0.5)
    monkeypatch.setattr(module, "FOLLOWERS_MAX", 2)
    monkeypatch.setattr(module, "shown", lambda view: {"large": "x" * (1 << 20)})
    with ExitStack() as opened:
        async with fed() as (address, admin):
            slow, quick = Follower(address, opened), Follower(address, opened)
            await quick.event("view")
            assert not admin.feed.has_room
            while not admin.feed.has_room:
                await quick.event("view")
            await quick.event("view")
            assert b"event: end" not in await slow.end()


async def test_who_follows_makes_no_room_for_half_open_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "CONNECTIONS_MAX", 4)
    with ExitStack() as opened:
        async with fed() as (address, _):
            follower = Follower(address, opened)
            await follower.event("view")
            for _ in range(40):
                half = opened.enter_context(socket.create_connection(parse_address(address), timeout=10))
                half.send(b"GET /livez HTTP/1.1\r\n")
            assert (await ask(address, "/livez")).status == 200
            for _ in range(3):
                await follower.event("view")


async def test_head_says_what_would_come() -> None:
    async with fed() as (address, _):
        answer = await ask(address, "/events", "HEAD")
    assert (answer.status, answer.headers["content-type"], answer.body) == (200, "text/event-stream", b"")
