"""What is held through an outage, in virtual time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anyio
import pytest

from streambatch.core.clock import SystemClock
from streambatch.core.errors import SinkOutage
from streambatch.core.events import Observer
from streambatch.delivery.outages import OutputOutages

pytestmark = [pytest.mark.anyio, pytest.mark.virtual_time]


class Told(Observer):
    """Keeps what it is told of the sink."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def sink_failed(self, sink: str, error: BaseException) -> None:
        self.told.append("failed")

    def sink_recovered(self, sink: str) -> None:
        self.told.append("recovered")


async def test_a_sync_that_works_beside_a_write_that_is_held_cures_nothing() -> None:
    observer, is_away = Told(), True
    outages = OutputOutages(SystemClock(), observer)

    async def write() -> None:
        if is_away:
            raise SinkOutage("scores", "away")

    async def sync() -> None:
        return

    async def through(call: Callable[[], Any]) -> None:
        await outages.outlast("scores", call)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(through, write)
        await outages.first.wait()
        for _ in range(10):
            await through(sync)
            assert outages.reasons(0.0)
            await anyio.sleep(1)
        assert set(observer.told) == {"failed"}
        is_away = False
    assert outages.reasons(0.0) == []
    assert observer.told[-1] == "recovered"
