"""Writes batches that are next in order: dead letters, scores, replies."""

from __future__ import annotations

from functools import partial

from streambatch.core.batches import Batch
from streambatch.core.clock import Clock
from streambatch.core.events import Observer
from streambatch.delivery.committer import Committer, ack
from streambatch.delivery.dead_letters import DeadLetterEncoder
from streambatch.delivery.outputs import OutputPair
from streambatch.delivery.owner import BatchOwner, Finished
from streambatch.delivery.posting import post
from streambatch.delivery.replies import send_replies


class BatchWriter:
    """Writes batches for an outbox, from one task. Without a committer a batch is acked once it is written."""

    def __init__(
        self,
        outputs: OutputPair,
        owner: BatchOwner,
        encoder: DeadLetterEncoder,
        *,
        clock: Clock,
        observer: Observer,
    ) -> None:
        self._outputs, self._owner, self._encoder = outputs, owner, encoder
        self._clock, self._observer = clock, observer
        self.committer: Committer | None = None
        self._has_begun = False
        self.writing_since: float | None = None
        """Since when a write is under way (monotonic seconds); None while none is."""
        self.last_written_wall = clock.wall()

    async def write(self, finished: list[Finished]) -> None:
        """Write batches together, and hand them to the committer."""
        committer = self.committer
        if committer is not None:
            if not self._has_begun:
                await committer.begin()
                self._has_begun = True
            # Batches are held until they are acked: a sink that seldom closes a segment would let them grow without
            # end.
            if committer.has_too_many:
                await committer.sync_all()
        started = self.writing_since = self._clock.monotonic()
        await self._write_outputs(finished)
        if any(outcome.replies for _, outcome in finished):
            send_replies(finished)
        now = self._clock.monotonic()
        self.writing_since, self.last_written_wall = None, self._clock.wall()
        if committer is not None:
            # Right after the write, so that the marks cover these batches and no later ones.
            committer.look()
        for batch, outcome in finished:
            batch.stamps.sink_started, batch.stamps.written = started, now
            self._owner.written(batch, outcome)
            self._observer.batch_written(batch, outcome)
            if committer is not None:
                committer.note(batch, outcome)  # reads the records, which are released next
            batch.release()
            outcome.release()
        if committer is not None:
            committer.add(finished)
            await committer.checkpoints.digested()
        else:
            ack(finished, now, self._owner, self._observer)

    async def _write_outputs(self, finished: list[Finished]) -> None:
        if self._outputs.sink.writer.is_identified:
            await self._post(finished)
            await self._write_dead_letters(finished)  # after the scores: what the sink refuses dies too
        else:
            # Before the scores: a write may close the sink's segment, and a closed one holds no score of a batch whose
            # dead letters are not written.
            await self._write_dead_letters(finished)
            payload = finished[0][1].payload if len(finished) == 1 else b"".join([o.payload for _, o in finished])
            if payload:
                await self._outputs.sink.write(payload)

    async def _write_dead_letters(self, finished: list[Finished]) -> None:
        rejects = [reject for _, outcome in finished for reject in outcome.rejects]
        if rejects:
            output = self._outputs.dead_letters
            # Encoded for each try: a dead letter says when it was written.
            await output.outlast(lambda: output.writer.write(self._encoder.encode(rejects)))
            output.writes += 1

    async def _post(self, finished: list[Finished]) -> None:
        sink = self._outputs.sink
        if self.committer is not None:
            # Before any is sent: after a crash, those whose answer did not come are cut again, under the same ids.
            intend = partial(self.committer.checkpoints.intend, [batch for batch, _ in finished])
            await sink.outlast(intend)
        for batch, outcome in finished:
            await post(sink, batch, outcome, self._id_of(batch), self._owner.refused)
            # Once for the batch, which may have been sent in parts.
            sink.writes += 1

    def _id_of(self, batch: Batch) -> str:
        if self.committer is not None:
            return self.committer.checkpoints.id_of(batch)
        return f"{self._encoder.run}-{batch.sequence}"
