"""The seam between bytes and records: what frames, decodes and encodes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from streambatch.core.chunks import Chunk, Partition
from streambatch.core.outcomes import RecordId, Rows
from streambatch.core.types import FloatArray


class Framer(Protocol):
    """Finds record boundaries in the blocks of one partition. Pure: bytes and the time in, chunks out."""

    pending: int
    """Bytes held of a record that is not complete."""
    position: int
    """Where the last complete record ended."""

    def feed(self, block: bytes, now: float) -> list[Chunk]:
        """Return the records that `block` completes."""
        ...

    def end(self, now: float, *, cut_off: bool = False) -> list[Chunk]:
        """Return what the end of the partition completes: an unterminated last record, dead if it was cut off."""
        ...


class Framing(Protocol):
    """A way to tell records apart in bytes."""

    name: str

    def framer(
        self,
        partition: Partition,
        *,
        max_record_bytes: int,
        position: int = 0,
        columns: tuple[str, ...] | None = None,
        origin: object = None,
    ) -> Framer:
        """Return a framer that starts at `position`; past the start of a format with a header it needs `columns`."""
        ...

    def strip(self, raw: memoryview) -> bytes:
        """Return a record's own bytes, without what frames it."""
        ...


class Decoder(Protocol):
    """Turns the chunks of one source into rows; a record's own problem becomes a reject, never an exception."""

    def decode(self, chunks: Sequence[Chunk]) -> Rows:
        """Decode consecutive chunks; indexes in the result count from the first record of the first chunk."""
        ...


class Encoder(Protocol):
    """Turns scores into the bytes of an output format."""

    def header(self) -> bytes:
        """Return what a fresh output starts with."""
        ...

    def encode(self, ids: Sequence[RecordId], scores: FloatArray, carry: Sequence[Sequence[Any]]) -> bytes: ...
