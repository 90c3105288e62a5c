"""Dead letters: records that could not be scored, and why, one JSON line each.

A dead letter holds the record's exact bytes, as text where they are UTF-8 and else as base64, so that it can be fixed
and sent again.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterable
from typing import Annotated

import msgspec
from pydantic import Field

from streambatch.core.chunks import Reason
from streambatch.core.clock import Clock, rfc3339
from streambatch.core.errors import TooManyDeadError
from streambatch.core.options import options
from streambatch.core.outcomes import Reject, Stage
from streambatch.core.report import Counts
from streambatch.core.text import encodable
from streambatch.storage.segments import Rotation

SHARE_COUNTS_FROM = 1000
"""Records after which the share of dead ones is compared with `stop_at`."""


@options
class DeadLetterOptions:
    """Where records that can't be scored go, and how many are too many."""

    path: str | None = None
    """File they are appended to; `dead_letters.jsonl` in the state folder if absent. Created with the first one."""
    stop_at: Annotated[float, Field(ge=0, le=1)] | None = None
    """Stop when more than this share of the records died, of at least 1,000; 1 is never. Default: 0.5 where all sources
    are files, else 1."""
    rotate: Rotation | None = None
    """Close a segment at this size or age and begin the next, such as `{ max_bytes = "256MiB", max_age = "1h" }`; named
    as a sink's. Absent: one file."""


class DeadLetter(msgspec.Struct, omit_defaults=True, kw_only=True):
    """A dead letter as written; either `record` or `record_base64` is there."""

    at: str
    pipeline: str
    run: str
    stage: Stage
    reason: Reason
    error: str
    source: str
    partition: str
    position: int
    record: str | None = None
    record_base64: str | None = None
    truncated: bool = False


_ENCODER = msgspec.json.Encoder()


def encode_dead_letters(rejects: Iterable[Reject], *, at: float, pipeline: str, run: str) -> bytes:
    """Return the rejects as lines of JSON. at: wall seconds."""
    moment = rfc3339(at)
    return _ENCODER.encode_lines([_dead_letter(reject, moment, pipeline, run) for reject in rejects])


class DeadLetterEncoder:
    """Encodes the dead letters of one run."""

    def __init__(self, pipeline: str, run: str, clock: Clock) -> None:
        self._pipeline, self.run, self._clock = pipeline, run, clock

    def encode(self, rejects: Iterable[Reject]) -> bytes:
        """Return the rejects as lines of JSON, as of now."""
        return encode_dead_letters(rejects, at=self._clock.wall(), pipeline=self._pipeline, run=self.run)


def stop_share(options: DeadLetterOptions, *, is_finite: bool) -> float:
    """Return the share of dead records that stops a run: by default half for files only, never with a socket."""
    if options.stop_at is not None:
        return options.stop_at
    return 0.5 if is_finite else 1.0


def too_many_dead(totals: Counts, stop_at: float) -> TooManyDeadError | None:
    """Return the error that ends a run in which more than the share `stop_at` of the records died."""
    settled = totals.scored + totals.dead_lettered
    # A share of few records says little: one bad record at the start must not end a run.
    if settled < SHARE_COUNTS_FROM or totals.dead_lettered <= stop_at * settled:
        return None
    return TooManyDeadError(totals.dead_lettered, settled, stop_at)


def _dead_letter(reject: Reject, at: str, pipeline: str, run: str) -> DeadLetter:
    text, base64 = _as_text(reject.record)
    return DeadLetter(
        at=at,
        pipeline=pipeline,
        run=run,
        stage=reject.stage,
        reason=reject.reason,
        # Texts from outside may hold lone surrogates, which JSON can't.
        error=encodable(reject.error),
        source=reject.partition.source,
        partition=encodable(reject.partition.name),
        position=reject.position,
        record=text,
        record_base64=base64,
        truncated=reject.truncated,
    )


def _as_text(record: bytes) -> tuple[str | None, str | None]:
    try:
        return record.decode(), None
    except UnicodeDecodeError:
        return None, b64encode(record).decode()
