"""The address of a source, which is known once it listens."""

import anyio


class Address:
    """Where a source listens, once it does."""

    def __init__(self) -> None:
        self.value: str | None = None
        self._known = anyio.Event()

    def set(self, value: str) -> None:
        self.value = value
        self._known.set()

    def clear(self) -> None:
        self.value = None
        self._known = anyio.Event()

    async def wait(self) -> str:
        while self.value is None:
            await self._known.wait()
        return self.value
