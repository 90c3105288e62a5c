"""A wake-up that can be given again and again: what tasks wait on while nothing has changed.

An `anyio.Event` stays set, so that whoever waits again and again has to replace it, and each place that does so has to
get the order right. A Signal is that, once.
"""

from __future__ import annotations

import anyio


class Signal:
    """Wakes whoever waits at the moment; a notification that comes while no task waits is forgotten.

    So look first and wait then, with no `await` between the two:

        while not self._chunks:
            await self._changed.wait()

    It may be made outside of an event loop, and belongs to one loop: not for use from other threads.
    """

    __slots__ = ("_event",)

    def __init__(self) -> None:
        self._event: anyio.Event | None = None

    @property
    def is_awaited(self) -> bool:
        """Whether a task waited since the last notification. It may have been cancelled meanwhile."""
        return self._event is not None

    def notify(self) -> None:
        """Wake all tasks that wait."""
        event = self._event
        if event is not None:
            # First: this event stays set, so that a task that waits from here on needs another.
            self._event = None
            event.set()

    async def wait(self) -> None:
        """Wait for the next notification."""
        event = self._event
        if event is None:
            event = self._event = anyio.Event()
        await event.wait()
