"""Sends a batch to a sink that tells batches apart by an id; what the sink will never take dies, the rest is taken."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial

from streambatch.core.batches import Batch
from streambatch.core.errors import SinkRefused
from streambatch.core.outcomes import Outcome, Reject
from streambatch.core.parts import Writer
from streambatch.delivery.refusals import Refusals, ends_of_lines

Hold = Callable[[Callable[[], Awaitable[object]]], Awaitable[None]]
"""Awaits a call through outages."""
Refuse = Callable[[Batch, int, str], Reject]
"""Makes the reject of a record of the batch, by its index there, with what the sink said."""


async def post(sink: Writer, batch: Batch, outcome: Outcome, name: str, hold: Hold, refuse: Refuse) -> None:
    """Send a batch's scores under its name; records that are refused alone become rejects of the outcome.

    Raises SinkRefused when lines and scores don't match, so that none is to blame.
    """
    payload = outcome.payload
    if not payload:
        return
    try:
        await hold(partial(sink.write_batch, payload, name))
    except SinkRefused as error:
        if len(ends_of_lines(payload)) != sum(outcome.scored.values()):
            raise
        for row, why in await _halved(sink, Refusals(payload, name, error), hold):
            outcome.refuse(refuse(batch, row if outcome.index is None else int(outcome.index[row]), str(why)))


async def _halved(sink: Writer, refusals: Refusals, hold: Hold) -> list[tuple[int, SinkRefused]]:
    while (part := refusals.next_part()) is not None:
        try:
            await hold(partial(sink.write_batch, part.payload, part.id))
        except SinkRefused as error:
            refusals.refused(error)
    return refusals.guilty
