"""The steps that follow in a run once a batch is written, and once it is durable."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from streambatch.core.batches import Batch
from streambatch.core.outcomes import Outcome, Reject
from streambatch.core.parts import Reader
from streambatch.core.report import Quantiles
from streambatch.delivery.dead_letters import stop_share, too_many_dead
from streambatch.delivery.owner import BatchOwner
from streambatch.pipeline.context import RunContext
from streambatch.pipeline.settings import Settings
from streambatch.scoring.transform import Transform


class Settlement(BatchOwner):
    """The owner of a run's batches, to its outbox.

    A batch that is written makes room for another one; one that is durable moves positions, which its readers get.
    """

    def __init__(
        self,
        context: RunContext,
        settings: Settings,
        transform: Transform,
        readers: Mapping[str, Reader],
        *,
        has_full_batch: Callable[[], bool],
        is_finite: bool,
    ) -> None:
        """has_full_batch: whether one waits to be cut. is_finite: whether the input ends by itself."""
        self._context, self._readers, self._transform = context, readers, transform
        self._has_full_batch, self._is_finite = has_full_batch, is_finite
        self._stop_at = stop_share(settings.dead_letter, is_finite=is_finite)
        self._latency = Quantiles()

    @property
    def latency(self) -> dict[str, float]:
        """From arrival to written, in seconds, by quantile."""
        return self._latency.as_dict()

    @property
    def is_busy(self) -> bool:
        """Whether a full batch waits to be cut."""
        return self._has_full_batch()

    def reload(self, settings: Settings, transform: Transform) -> None:
        """Settle batches by other settings from now on."""
        self._transform = transform
        self._stop_at = stop_share(settings.dead_letter, is_finite=self._is_finite)

    def written(self, batch: Batch, outcome: Outcome) -> None:
        """Give back the room that a written batch took."""
        context = self._context
        context.budget.give(context.feedback.written(batch, outcome))
        for chunk in batch.chunks:
            # One measure for a whole chunk, since its records arrived together.
            self._latency.add(batch.stamps.written - chunk.arrived_at, chunk.count)

    def acked(self, batch: Batch, outcome: Outcome) -> None:
        """Count a durable batch and pass its positions on; fail the run if too many records died."""
        ledger = self._context.ledger
        for partition, position in ledger.acked(batch, outcome).items():
            self._readers[partition.source].acked({partition.name: position})
        # After the batch was counted, so that even the dead records of the very last one stop the run.
        if outcome.dead and (error := too_many_dead(ledger.totals(), self._stop_at)) is not None:
            self._context.feedback.fail(error)

    def refused(self, batch: Batch, index: int, error: str) -> Reject:
        """Return the reject of a record that the sink will never take."""
        return self._transform.refused(batch, index, error)
