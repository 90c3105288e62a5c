"""Sends a batch under its id. Records that the sink will never take are found by halving and die; the rest is sent."""

from __future__ import annotations

from collections.abc import Callable

from streambatch.core.batches import Batch
from streambatch.core.errors import SinkRefused
from streambatch.core.outcomes import Outcome, Reject
from streambatch.delivery.outputs import HeldOutput
from streambatch.delivery.refusals import Refusals, ends_of_lines

Refuse = Callable[[Batch, int, str], Reject]
"""Makes the reject of a record of the batch, by its index there, with what the sink said."""


async def post(sink: HeldOutput, batch: Batch, outcome: Outcome, batch_id: str, refuse: Refuse) -> None:
    """Send a batch's scores under its id; records that are refused alone become rejects of the outcome.

    Raises SinkRefused when lines and scores don't match, so that none is to blame.
    """
    payload = outcome.payload
    if not payload:
        return
    try:
        await sink.write_batch(payload, batch_id)
    except SinkRefused as error:
        # With a line for each score, a line's place says which record it is of; else no record could be blamed.
        if len(ends_of_lines(payload)) != sum(outcome.scored.values()):
            raise
        for row, why in await _bisected(sink, Refusals(payload, batch_id, error)):
            outcome.refuse(refuse(batch, row if outcome.index is None else int(outcome.index[row]), str(why)))


async def _bisected(sink: HeldOutput, refusals: Refusals) -> list[tuple[int, SinkRefused]]:
    while (part := refusals.next_part()) is not None:
        try:
            await sink.write_batch(part.payload, part.id)
        except SinkRefused as error:
            refusals.refused(error)
    return refusals.guilty
