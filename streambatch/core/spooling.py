"""Options of a spool, and the reasons why it stores no request: shared by sources and the spool behind them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from streambatch.core.errors import OptionError
from streambatch.core.options import options
from streambatch.core.units import Size, format_size

DEDUPE_SECONDS = 24 * 3600.0
"""How long an idempotency key is remembered, unless a source says otherwise."""
RECORDS_MIN = 4
"""A spool holds at least so many records of the largest size."""


@options
class SpoolOptions:
    """Keep what comes in on disk, in the state_dir, until its scores are durable: a crash then loses none of it."""

    max_bytes: Annotated[Size, Field(ge=1 << 20)]
    """How large the spool may grow. While it is full the source takes nothing in; nothing is dropped."""


@dataclass(kw_only=True, slots=True)
class SpoolStatus:
    """A spool at this moment.

    size, capacity: bytes. corrupt_segments: put aside since the start. backlog_records: durable and not handed over
    yet. outage: why nothing can be stored for now.
    """

    size: int
    capacity: int
    corrupt_segments: int
    backlog_records: int
    outage: str | None = None


class SpoolFull(Exception):
    """There is no room to store this now."""


class RequestTooLarge(Exception):
    """A request takes more of the spool than one may: it will never be stored whole."""


class KeyReused(Exception):
    """An idempotency key came back with other records than the first time."""


def check_spool(
    spool: SpoolOptions | None,
    *,
    max_record_bytes: int,
    when_full: Literal["block", "drop_newest"] = "block",
    reply: bool = False,
) -> None:
    """Raise OptionError for options of a source that don't go together with its spool."""
    if spool is None:
        return
    if reply:
        raise OptionError("reply", "true", "false, with a spool: a client may be gone when its records are scored")
    if when_full != "block":
        raise OptionError("when_full", when_full, "block, with a spool: it drops nothing")
    if spool.max_bytes < RECORDS_MIN * max_record_bytes:
        least = format_size(RECORDS_MIN * max_record_bytes)
        raise OptionError("spool.max_bytes", format_size(spool.max_bytes), f"at least {least}, for max_record_bytes")
