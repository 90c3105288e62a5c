"""How often the live page is told, in virtual time."""

from __future__ import annotations

import anyio
import pytest

from streambatch.web import page_events as module
from streambatch.web.page_events import EventFeed
from tests.web.clients import admin_of

pytestmark = [pytest.mark.anyio, pytest.mark.virtual_time]


async def test_nothing_is_drawn_while_nobody_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[object] = []
    monkeypatch.setattr(module, "shown", drawn.append)
    feed = EventFeed(admin_of().watch)
    with anyio.move_on_after(3600):
        await feed.run()
    assert len(drawn) == 1  # the end, for whoever comes then


async def test_all_who_look_are_told_each_second_what_was_drawn_once(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[object] = []
    monkeypatch.setattr(module, "shown", drawn.append)
    feed, told = EventFeed(admin_of().watch), [0, 0, 0]

    async def follow(at: int) -> None:
        with feed.counted():
            async for _ in feed.follow():
                told[at] += 1

    async with anyio.create_task_group() as tasks:
        for at in range(3):
            tasks.start_soon(follow, at)
        await anyio.wait_all_tasks_blocked()
        with anyio.move_on_after(10.5):
            await feed.run()
    assert told == [13, 13, 13]  # at once, eleven times, and the end
    assert len(drawn) == 3 + 11 + 1


async def test_one_that_is_slow_gets_the_newest_and_not_what_it_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers, got = iter(range(1000)), list[int]()
    monkeypatch.setattr(module, "shown", lambda view: {"drawn": next(numbers)})
    feed = EventFeed(admin_of().watch)

    async def follow() -> None:
        with feed.counted():
            async for event in feed.follow():
                got.append(int(event.rpartition(b":")[2].strip(b"}\n")))
                await anyio.sleep(5)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(follow)
        await anyio.sleep(0.5)
        with anyio.move_on_after(20.2):
            await feed.run()
    assert got == sorted(got)
    assert len(got) < 8
