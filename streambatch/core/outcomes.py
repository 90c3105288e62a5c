"""Results of the records of a batch: rows, scores, rejects."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec

from streambatch.core.chunks import Partition, Reason
from streambatch.core.types import FloatArray, IntArray

RecordId = int | str
Stage = Literal["frame", "decode", "validate", "preprocess", "score", "sink"]


class Reject(msgspec.Struct, frozen=True):
    """A record that failed: where in the batch and in its partition, at which stage, why, and its exact bytes."""

    index: int
    partition: Partition
    position: int
    stage: Stage
    reason: Reason
    error: str
    record: bytes
    id: RecordId | None = None
    truncated: bool = False


class Rows(msgspec.Struct, frozen=True):
    """Decoded records, by column.

    ids: one per row. x: (n, *shape) features. carry: one list of n values per carried field, in order.
    index: (n,) int64, each row's place in its batch; None when no record is missing.
    rejects: the records that are missing.
    """

    ids: Sequence[RecordId]
    x: FloatArray
    carry: Sequence[Sequence[Any]]
    index: IntArray | None
    rejects: Sequence[Reject]


class Outcome:
    """The result of a transform for a batch: encoded scores, rejects, and how many rows a step filtered, per source.

    dead: rejects counted by source, stage and reason; it stays when the rejects are released.
    replies: for each chunk of the batch the lines to answer its records with; empty where no sender waits.
    index: the place in the batch of each record scored; None when all were. states: what steps with memory hold after
    the batch; None where there is no such step. retries: how many calls of the model were tried again.
    """

    __slots__ = ("dead", "filtered", "index", "payload", "rejects", "replies", "retries", "scored", "states")

    def __init__(
        self,
        payload: bytes,
        scored: Mapping[str, int],
        rejects: Sequence[Reject],
        filtered: Mapping[str, int],
        replies: Sequence[bytes] = (),
        index: IntArray | None = None,
        states: Any = None,
        retries: int = 0,
    ) -> None:
        self.payload, self.scored, self.rejects, self.filtered = payload, scored, rejects, filtered
        self.replies, self.index, self.states, self.retries = replies, index, states, retries
        self.dead: dict[tuple[str, Stage, Reason], int] = {}
        if rejects:
            self.dead = Counter((reject.partition.source, reject.stage, reject.reason) for reject in rejects)

    @property
    def size(self) -> int:
        """Bytes of the scores and of the replies."""
        return len(self.payload) + (sum(map(len, self.replies)) if self.replies else 0)

    def refuse(self, reject: Reject) -> None:
        """Make a reject of a record that was scored."""
        source = reject.partition.source
        self.scored = {**self.scored, source: self.scored[source] - 1}
        self.rejects = [*self.rejects, reject]
        key = source, reject.stage, reject.reason
        self.dead[key] = self.dead.get(key, 0) + 1

    def release(self) -> None:
        """Drop the bytes that were written; the counts stay."""
        self.payload, self.rejects, self.replies, self.index = b"", (), (), None
