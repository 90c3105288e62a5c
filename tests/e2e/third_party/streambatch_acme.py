"""A source that counts and a sink that tags lines: a package as somebody else would write it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import KW_ONLY
from functools import cached_property
from io import FileIO
from typing import Annotated, Literal

import anyio
from anyio import to_thread
from pydantic import Field

from streambatch.parts import Duration, Feed, Intake, Partition, SinkError, framing_for_format, options

RECORDS_AT_ONCE = 500


@options
class CounterSource:
    """Counts: record n is `{"id": n, "x": [n.5]}`."""

    count: Annotated[int, Field(ge=0)]
    """How many records."""
    _: KW_ONLY
    pause: Annotated[Duration, Field(ge=0)] = 0.0
    """Time between blocks of records."""
    name: str = "counter"

    @property
    def is_finite(self) -> bool:
        return True

    @property
    def format(self) -> Literal["jsonl"]:
        return "jsonl"

    async def run(self, intake: Intake) -> None:
        framer = framing_for_format(self.format).framer(Partition(self.name, "count"), max_record_bytes=1 << 20)
        feed = Feed(intake, framer, self.name)
        try:
            for first in range(0, self.count, RECORDS_AT_ONCE):
                block = b"".join(record(number) + b"\n" for number in range(first, self.count)[:RECORDS_AT_ONCE])
                await feed.room(len(block))
                await feed.push(block)
                await anyio.sleep(self.pause)
            await feed.end()
        finally:
            feed.release()

    def acked(self, positions: Mapping[str, int]) -> None: ...

    def revoke(self, partition: str) -> None: ...


def record(number: int) -> bytes:
    return b'{"id": %d, "x": [%d.5]}' % (number, number)


@options
class TaggedSink:
    """Writes score lines to a file, each after a tag."""

    path: str
    """Where to write; what is there is replaced."""
    tag: str = "score"
    """What a line starts with."""
    name: str = "tagged"

    @property
    def format(self) -> Literal["jsonl"]:
        return "jsonl"

    @cached_property
    def _output(self) -> Output:
        return Output()

    async def open(self, header: bytes) -> None:
        with self._naming_errors():
            self._output.file = await to_thread.run_sync(lambda: FileIO(self.path, "w"))

    async def write(self, payload: bytes) -> None:
        prefix = f"{self.tag} ".encode()
        tagged = b"".join(prefix + line for line in payload.splitlines(keepends=True))
        with self._naming_errors(), anyio.CancelScope(shield=True):
            await to_thread.run_sync(self._output.append, tagged)

    async def sync(self) -> int:
        with self._naming_errors():
            return await to_thread.run_sync(self._output.sync)

    async def close(self) -> None:
        self._output.close()

    @contextmanager
    def _naming_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise SinkError(self.name, f"{self.path}: {error.strerror}") from error


class Output:
    """The file, while it is open."""

    file: FileIO | None = None
    length = 0

    def append(self, data: bytes) -> None:
        """Add all of it, or nothing."""
        assert self.file is not None
        view = memoryview(data)
        try:
            while view:
                view = view[self.file.write(view) :]
        except OSError:
            self.file.truncate(self.length)
            self.file.seek(self.length)
            raise
        self.length += len(data)

    def sync(self) -> int:
        assert self.file is not None
        length = self.length
        os.fsync(self.file.fileno())
        return length

    def close(self) -> None:
        if self.file is not None:
            self.file.close()
        self.length = 0
