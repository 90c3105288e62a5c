"""Hands the answers of written batches to where their records came from.

The source that framed a chunk put its origin there. An origin gets every record's answer once, in order, also when
its client is gone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from streambatch.core.batches import Batch
from streambatch.core.outcomes import Outcome


class Origin(Protocol):
    """Takes answers in. Must not block and must not raise."""

    def answer(self, records: int, size: int, lines: bytes) -> None:
        """Take the answers to so many records of so many bytes, framing included, one line each."""
        ...


def send_replies(finished: Sequence[tuple[Batch, Outcome]]) -> None:
    """Hand over the answers of batches that were just written: to each origin all of them at once."""
    owed: dict[Any, tuple[int, int, list[bytes]]] = {}
    for batch, outcome in finished:
        if not outcome.replies:
            continue
        for chunk, lines in zip(batch.chunks, outcome.replies, strict=True):
            if chunk.origin is not None:
                records, size, parts = owed.get(chunk.origin, (0, 0, []))
                parts.append(lines)
                owed[chunk.origin] = records + chunk.count, size + chunk.size, parts
    for origin, (records, size, parts) in owed.items():
        origin.answer(records, size, parts[0] if len(parts) == 1 else b"".join(parts))
