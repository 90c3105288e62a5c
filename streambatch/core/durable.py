"""What outlives a process: what sources and sinks say of themselves for a checkpoint and are given back at the next
start.

Everything here can be written as JSON: numbers, text, lists and tables of them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

import msgspec

Notes = Mapping[str, Any]
"""What a source recognises a partition by; only the source reads it."""
Mark = Mapping[str, Any]
"""How far an output goes; only the output reads it."""
Commit = Callable[[Mark], Awaitable[None]]
"""Stores an output's mark in a checkpoint, durably, with all that was written to it before."""

T = TypeVar("T", bound=msgspec.Struct)


def learned(struct: type[T]) -> type[T]:
    """Have msgspec learn a struct's fields now: two threads that are the first to read one crash the process."""
    msgspec.json.Decoder(struct)
    return struct


class Saved(msgspec.Struct, frozen=True, kw_only=True):
    """A partition as the last checkpoint has it.

    position: where its acked records end. read_to: where the records end that were ever received.
    """

    position: int
    read_to: int
    notes: Notes
