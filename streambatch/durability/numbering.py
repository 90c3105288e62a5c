"""The numbers of batches: each batch has one that is its own for good, over all runs, and an id made of it.

A batch that could not be cut the same again keeps its number, and so its place among the others, and gets another id,
by its revision: under the first id, other records were sent.
"""

from __future__ import annotations

from streambatch.core.batches import Batch


class BatchNumbers:
    """Gives batches their numbers, which go up in the order in which they are asked for."""

    def __init__(self, state_id: str, next_number: int) -> None:
        self._state_id, self._next_number = state_id, next_number
        self._numbers: dict[int, int] = {}

    def number_of(self, batch: Batch) -> int:
        """Return a batch's number: a new one, unless an earlier run gave it one."""
        number = self._numbers.get(batch.sequence)
        if number is None:
            # It is cut again after a crash, and keeps the number under which it was intended.
            if batch.id is not None:
                number = number_in(batch.id)
            else:
                number, self._next_number = self._next_number, self._next_number + 1
            self._numbers[batch.sequence] = number
        return number

    def id_of(self, batch: Batch) -> str:
        """Return the id of a batch, which is the same if it is cut again after a crash."""
        return batch.id if batch.id is not None else batch_id(self._state_id, self.number_of(batch))

    def forget(self, batch: Batch) -> None:
        """Forget the number of a batch that is noted in the journal."""
        del self._numbers[batch.sequence]


def batch_id(state_id: str, number: int, revision: int = 0) -> str:
    """Return the id of a batch."""
    return f"{state_id}-{number}" + (f"r{revision}" if revision else "")


def number_in(id: str) -> int:
    """Return the number in an id."""
    return int(id.rpartition("-")[2].partition("r")[0])


def revision_in(id: str) -> int:
    """Return the revision in an id."""
    return int(id.rpartition("-")[2].partition("r")[2] or 0)
