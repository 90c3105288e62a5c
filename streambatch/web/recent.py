"""Keep the last dead letters and errors of a pipeline, for its status.

The number of both is bounded: an error that repeats is one entry with a count, and of a batch full of dead records only
the last few are looked at. The bytes of a record are never kept.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from streambatch.core.batches import Batch
from streambatch.core.clock import Clock
from streambatch.core.events import Observer
from streambatch.core.outcomes import Outcome
from streambatch.core.redaction import redacted
from streambatch.core.text import encodable, shortened
from streambatch.web.status import date_of

KEPT = 20
"""Number of dead letters, and of errors, that are kept."""
TEXT_MAX = 240
"""Characters kept of an error's text."""


class RecentProblems(Observer):
    """An observer that keeps the last dead letters and errors, the newest first, ready for JSON."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._dead: deque[dict[str, Any]] = deque(maxlen=KEPT)
        self._errors: deque[dict[str, Any]] = deque(maxlen=KEPT)

    @property
    def dead_letters(self) -> list[dict[str, Any]]:
        """The last dead letters: `at`, `stage`, `reason`, `source`, `partition`, `position`, `error`."""
        return list(reversed(self._dead))

    @property
    def errors(self) -> list[dict[str, Any]]:
        """The last errors: `where`, `error`, `at`, `last_at`, `times`, and `over_at`, None while an outage lasts."""
        return [dict(error) for error in reversed(self._errors)]

    def batch_written(self, batch: Batch, outcome: Outcome) -> None:
        if not outcome.rejects:
            return
        at = self._now()
        for reject in outcome.rejects[-KEPT:]:
            self._dead.append(
                {
                    "at": at,
                    "stage": reject.stage,
                    "reason": reject.reason,
                    "source": reject.partition.source,
                    "partition": encodable(reject.partition.name),
                    "position": reject.position,
                    "error": _short(reject.error),
                }
            )

    def source_failed(self, source: str, error: BaseException) -> None:
        self._note(f"source {source}", str(error))

    def source_recovered(self, source: str) -> None:
        self._note_end(f"source {source}")

    def sink_failed(self, sink: str, error: BaseException) -> None:
        self._note(f"sink {sink}", str(error))

    def sink_recovered(self, sink: str) -> None:
        self._note_end(f"sink {sink}")

    def synced(self, seconds: float, *, ok: bool) -> None:
        if ok:
            self._note_end("checkpoint")
        else:
            self._note("checkpoint", "outputs could not be made durable")

    def _note(self, where: str, error: str) -> None:
        at, error = self._now(), _short(error)
        # An error that repeats during an outage is one entry with a count.
        for known in self._errors:
            if known["over_at"] is None and (known["where"], known["error"]) == (where, error):
                known["times"] += 1
                known["last_at"] = at
                return
        self._errors.append({"where": where, "error": error, "at": at, "last_at": at, "times": 1, "over_at": None})

    def _note_end(self, where: str) -> None:
        for known in self._errors:
            if known["over_at"] is None and known["where"] == where:
                known["over_at"] = self._now()

    def _now(self) -> str:
        return date_of(self._clock.wall())


def _short(text: str) -> str:
    return shortened(redacted(encodable(text)), TEXT_MAX)
