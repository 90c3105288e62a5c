"""The sink that keeps scores in memory: for tests and for programs that take them from there.

It is not bounded; whoever uses it empties `payloads`.
"""

from __future__ import annotations

from typing import Literal


class MemorySink:
    """Keep the payloads of batches, in order.

    header: what a fresh output would start with. payloads: one per write, as encoded.
    """

    def __init__(self, *, format: Literal["jsonl", "csv"] = "jsonl", name: str = "memory") -> None:
        self.format, self.name = format, name
        self.header = b""
        self.payloads: list[bytes] = []
        self._length = 0

    def data(self) -> bytes:
        """Return header and payloads as one."""
        return self.header + b"".join(self.payloads)

    async def open(self, header: bytes) -> None:
        """Take the header; payloads kept from before stay."""
        self._length += len(header) - len(self.header)
        self.header = header

    async def write(self, payload: bytes) -> None:
        """Keep a payload."""
        self.payloads.append(payload)
        self._length += len(payload)

    async def sync(self) -> int:
        """Return the bytes written so far."""
        return self._length

    async def close(self) -> None:
        """Do nothing: the payloads stay."""
