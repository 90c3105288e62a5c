"""A sink whose options and writer are two classes."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from anyio import to_thread

from streambatch.parts import Claim, Sink, SinkError, Site, Writer, options


@options
class LastSink(Sink):
    """Keeps the last line of scores in a file."""

    path: str
    """Where to write; what is there is replaced."""
    name: str = "last"
    """Label of the sink."""

    @property
    def format(self) -> Literal["jsonl"]:  # type: ignore[override]  # it is always the same
        return "jsonl"

    def build(self, site: Site) -> LastWriter:
        return LastWriter(self)

    def claims(self) -> list[Claim]:
        return [Claim("output", "path", self.path)]


class LastWriter(Writer):
    """Replaces the file with each write."""

    def __init__(self, options: LastSink) -> None:
        self.name, self.path = options.name, Path(options.path)
        self.length = 0

    async def open(self, header: bytes) -> None: ...

    async def write(self, payload: bytes) -> None:
        last = payload[payload.rfind(b"\n", 0, -1) + 1 :]
        try:
            await to_thread.run_sync(self.path.write_bytes, last)
        except OSError as error:
            raise SinkError(self.name, f"{self.path}: {error.strerror}") from error
        self.length += len(payload)

    async def sync(self) -> int:
        return self.length

    async def close(self) -> None: ...
