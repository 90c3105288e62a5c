"""The parts of a checkpoint that sources and outputs store, and get back at the next start.

Everything here can be written as JSON: numbers, text, lists and tables of them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

import msgspec

PartitionNotes = Mapping[str, Any]
"""What a source recognises a partition by; only the source reads it."""
OutputMark = Mapping[str, Any]
"""How far an output goes; only the output reads it."""
CommitMark = Callable[[OutputMark], Awaitable[None]]
"""Stores an output's mark in a checkpoint, durably, with all that was written to it before."""

T = TypeVar("T", bound=msgspec.Struct)


def resolved_early(struct: type[T]) -> type[T]:
    """Return a struct whose field types msgspec has resolved."""
    # msgspec resolves them at the first use, without a lock: two threads that are the first together crash the process.
    msgspec.json.Decoder(struct)
    return struct


class SavedPartition(msgspec.Struct, frozen=True, kw_only=True):
    """A partition as the last checkpoint has it."""

    position: int
    """Where its acked records end."""
    read_to: int
    """Where the records end that were ever received."""
    notes: PartitionNotes
