"""The sink that keeps scores in memory: for tests and for programs that take them from there.

It is not bounded: the program that uses it empties `payloads`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from streambatch.codecs.formats import TextFormat
from streambatch.core.parts import Sink, Site, Writer


@dataclass(frozen=True, kw_only=True)
class MemorySink(Sink):
    """Keep the payloads of batches, in order. Runs one after the other, in one process, add to the same list."""

    format: TextFormat = "jsonl"
    """How scores are encoded."""
    name: str = "memory"
    """Label of the sink in metrics and messages."""
    # A lambda, since the class is defined further down.
    output: MemoryOutput = field(default_factory=lambda: MemoryOutput(), init=False, repr=False, compare=False)
    """Where the writers put what they are given."""

    @property
    def header(self) -> bytes:
        """What a fresh output would start with."""
        return self.output.header

    @property
    def payloads(self) -> list[bytes]:
        """One per write, as encoded."""
        return self.output.payloads

    def data(self) -> bytes:
        """Return header and payloads as one."""
        return self.header + b"".join(self.payloads)

    def build(self, site: Site) -> MemoryWriter:
        return MemoryWriter(self.name, self.output)


class MemoryOutput:
    """Scores in memory. length: of the header and of all payloads that were ever written."""

    def __init__(self) -> None:
        self.header = b""
        self.payloads: list[bytes] = []
        self.length = 0


class MemoryWriter(Writer):
    """Keeps the payloads of one run."""

    def __init__(self, name: str, output: MemoryOutput) -> None:
        self.name, self.output = name, output

    async def open(self, header: bytes) -> None:
        """Take the header; payloads kept from before stay."""
        self.output.length += len(header) - len(self.output.header)
        self.output.header = header

    async def write(self, payload: bytes) -> None:
        """Keep a payload."""
        self.output.payloads.append(payload)
        self.output.length += len(payload)

    async def sync(self) -> int:
        """Return the bytes written so far."""
        return self.output.length

    async def close(self) -> None:
        """Do nothing: the payloads stay."""
