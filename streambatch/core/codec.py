"""The seam between bytes and records: what frames, decodes and encodes them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Protocol

import msgspec

from streambatch.core.chunks import Chunk, Partition
from streambatch.core.outcomes import RecordId, Rows
from streambatch.core.schema import RecordSchema
from streambatch.core.types import FloatArray


class Framer(Protocol):
    """Finds record boundaries in the blocks of one partition. Pure: bytes and the time in, chunks out."""

    pending: int
    """Bytes held of a record that is not complete."""
    position: int
    """Where the last complete record ended."""
    columns: tuple[str, ...] | None
    """The header's names, once it was read; always None for a format without a header."""

    def feed(self, block: bytes, now: float) -> list[Chunk]:
        """Return the records that `block` completes."""
        ...

    def end(self, now: float, *, cut_off: bool = False) -> list[Chunk]:
        """Return what the end of the partition completes: an unterminated last record, dead if it was cut off."""
        ...


class FramerStart(msgspec.Struct, frozen=True, kw_only=True):
    """Where framing starts in a partition, and what its chunks carry."""

    partition: Partition
    max_record_bytes: int
    """A longer record is dead; its first bytes are kept."""
    position: int = 0
    """Offset in the partition of the first byte of the first block."""
    columns: tuple[str, ...] | None = None
    """The header's names: a format with a header needs them to start anywhere but at 0."""
    origin: object = None
    """What every chunk carries for replies."""

    def at(self, position: int, columns: tuple[str, ...] | None = None) -> FramerStart:
        """Return the same start at another position."""
        return msgspec.structs.replace(self, position=position, columns=columns)


class Framing(ABC):
    """A way to tell records apart in bytes."""

    name: str
    has_header: bool = False
    """Whether what begins a partition is needed to read it from further on: see `FramerStart.columns`."""

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
        return self.framer_from(
            FramerStart(
                partition=partition,
                max_record_bytes=max_record_bytes,
                position=position,
                columns=columns,
                origin=origin,
            )
        )

    @abstractmethod
    def framer_from(self, start: FramerStart) -> Framer:
        """Return a framer that starts there."""

    @abstractmethod
    def strip(self, raw: memoryview) -> bytes:
        """Return a record's own bytes, without what frames it."""


class Codec(Protocol):
    """Makes the two directions between bytes and records."""

    def decoder(self, schema: RecordSchema, framing: Framing) -> Decoder: ...

    def encoder(self, schema: RecordSchema) -> Encoder: ...


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
