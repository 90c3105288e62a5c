"""An intake for sources of files: it checks that every partition's positions only move on, and keeps file events."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio

from streambatch.connectors.files.reader import FileReader
from streambatch.connectors.files.source import FileSource
from streambatch.core.chunks import Chunk
from streambatch.core.events import FileEvent
from streambatch.core.parts import Site
from tests.connectors.intakes import CountingObserver, KeepingIntake


class FileObserver(CountingObserver):
    """Keeps what happened to files."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[tuple[str, FileEvent]] = []
        self.outages: list[str] = []
        self._changed = anyio.Event()

    def file_changed(self, source: str, path: str, event: FileEvent) -> None:
        self.events.append((path, event))
        self._notify()

    def source_failed(self, source: str, error: BaseException) -> None:
        self.outages.append(str(error))
        self._notify()

    def source_recovered(self, source: str) -> None:
        self.outages.append("recovered")
        self._notify()

    async def told(self, outages: int) -> None:
        """Wait until so much was told of outages: where one began, and where it ended."""
        while len(self.outages) < outages:
            await self._changed.wait()

    async def saw(self, event: FileEvent, times: int = 1) -> None:
        """Wait until something happened so many times."""
        while self.count(event) < times:
            await self._changed.wait()

    def count(self, event: FileEvent) -> int:
        return sum(1 for _, each in self.events if each == event)

    def _notify(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()


class FileIntake(KeepingIntake):
    """Keeps every chunk; a partition that goes back, or a chunk that overlaps another, is an error."""

    def __init__(self, memory: int = 256 << 20) -> None:
        super().__init__(memory)
        self.observer = self.seen = self.files = FileObserver()
        self.positions: dict[str, int] = {}

    async def put(self, chunk: Chunk) -> None:
        before = self.positions.get(chunk.partition.name, 0)
        assert chunk.position_of(0) > before, f"{chunk} starts before {before}"
        self.positions[chunk.partition.name] = chunk.position
        await super().put(chunk)

    def lines(self) -> list[bytes]:
        """Return every record that is not dead, without its line ending."""
        return [record.strip() for record in self.records()]


def reader_of(source: FileSource | FileReader) -> FileReader:
    return source.build(Site()) if isinstance(source, FileSource) else source


async def read_all(source: FileSource | FileReader, intake: FileIntake | None = None) -> FileIntake:
    """Run a source that ends. Returns what it pushed into."""
    intake = intake or FileIntake()
    with anyio.fail_after(20):
        await reader_of(source).run(intake)
    assert intake.budget.used == 0
    return intake


@asynccontextmanager
async def following(source: FileSource | FileReader, intake: FileIntake) -> AsyncIterator[None]:
    """Run a source beside the test and stop it at the end."""
    with anyio.fail_after(20):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(reader_of(source).run, intake)
            yield
            tasks.cancel_scope.cancel()
    assert intake.budget.used == 0
