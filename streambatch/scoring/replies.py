"""The answers to a batch's records: a line for every record, in the records' order.

Of a record that was scored it is the line that an output in JSON lines gets; of one that died, or that a step left
out, `{"id", "error": {"stage", "reason", "message"}}`. So the n-th line on a connection answers its n-th record.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import numpy as np

from streambatch.codecs.text.lines import newlines
from streambatch.core.batches import Batch
from streambatch.core.outcomes import RecordId, Reject
from streambatch.core.types import IntArray


def reject_line(reject: Reject) -> bytes:
    """Return the answer to a record that died."""
    return _line(reject.id, reject.stage, reject.reason, reject.error)


def filtered_line(record_id: RecordId) -> bytes:
    """Return the answer to a record that a preprocess step left out."""
    return _line(record_id, "preprocess", "filtered", "a preprocess step left the record out")


def replies_of(batch: Batch, lines: bytes, places: IntArray, others: Mapping[int, bytes]) -> list[bytes]:
    """Return the answer to each chunk of the batch; empty for one that has no origin.

    lines: the scores, one line each. places: (n,) ascending, where in the batch the record of each line is. others:
    the lines of all other records, by place.
    """
    # Line n lies between ends[n] and ends[n + 1].
    ends = np.concatenate((np.zeros(1, np.int64), newlines(lines)))
    waiting = sorted(others)
    found, start = [], 0
    for chunk in batch.chunks:
        stop = start + chunk.count
        if chunk.origin is None:
            found.append(b"")
        else:
            # Places ascend from chunk to chunk, so that each chunk has one stretch of the others.
            first, last = np.searchsorted(waiting, (start, stop)) if waiting else (0, 0)
            found.append(_between(start, stop, lines, ends, places, [(at, others[at]) for at in waiting[first:last]]))
        start = stop
    return found


def _between(
    start: int, stop: int, lines: bytes, ends: IntArray, places: IntArray, others: list[tuple[int, bytes]]
) -> bytes:
    """Return the lines of the places from `start` to `stop`."""
    # Between which lines of scores each of the other lines goes.
    cuts = np.searchsorted(places, [start, *(place for place, _ in others), stop])
    offsets = ends[cuts].tolist()
    parts = [lines[offsets[0] : offsets[1]]]
    for at, (_, line) in enumerate(others, start=1):
        parts += [line, lines[offsets[at] : offsets[at + 1]]]
    return b"".join(parts)


def _line(record_id: RecordId | None, stage: str, reason: str, message: str) -> bytes:
    error = {"stage": stage, "reason": reason, "message": message}
    return msgspec.json.encode({"id": record_id, "error": error}) + b"\n"
