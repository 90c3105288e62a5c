"""The dead letters of one run: rejects in, lines out, in the file that the options or the state folder name."""

from collections.abc import Sequence
from pathlib import Path

from streambatch.core.clock import Clock
from streambatch.core.durable import Commit, Mark
from streambatch.core.errors import TooManyDeadError
from streambatch.core.outcomes import Reject
from streambatch.core.report import Counts
from streambatch.delivery.dead_letters import DeadLetterFile, DeadLetterOptions, encode_dead_letters

FILE_NAME = "dead_letters.jsonl"
SHARE_COUNTS_FROM = 1000
"""Records after which the share of dead ones is held against `stop_at`."""


class DeadLetterLog:
    """Writes rejects as dead letters; without a path and a state folder they are counted and kept nowhere."""

    def __init__(
        self, options: DeadLetterOptions, state_dir: Path | None, *, pipeline: str, run: str, clock: Clock
    ) -> None:
        path = Path(options.path) if options.path is not None else state_dir and state_dir / FILE_NAME
        self.path = path
        self._file = DeadLetterFile(path, options.rotate, clock) if path is not None else None
        self._pipeline, self._run, self._clock = pipeline, run, clock

    def restore(self, mark: Mark | None, commit: Commit) -> None:
        """Learn, before `open`, how far the dead letters were acked; see `RewindableOutput`."""
        if self._file is not None:
            self._file.restore(mark, commit)

    def mark(self) -> Mark:
        """Return how far they go; nothing where they are kept nowhere."""
        return self._file.mark() if self._file is not None else {}

    async def open(self) -> None:
        """Claim the file. Raises SinkError or HeldError."""
        if self._file is not None:
            await self._file.open()

    async def write(self, rejects: Sequence[Reject]) -> None:
        """Append one dead letter per reject."""
        if self._file is not None:
            at = self._clock.wall()
            await self._file.write(encode_dead_letters(rejects, at=at, pipeline=self._pipeline, run=self._run))

    async def close_due(self) -> None:
        """Close a segment that is old enough. For the task that writes."""
        if self._file is not None:
            await self._file.close_due()

    async def sync(self) -> None:
        """Make durable what was written."""
        if self._file is not None:
            await self._file.sync()

    async def finish(self) -> None:
        """Complete what is open: nothing more will be written."""
        if self._file is not None:
            await self._file.finish()

    async def close(self) -> None:
        if self._file is not None:
            await self._file.close()


def stop_share(options: DeadLetterOptions, *, is_finite: bool) -> float:
    """Return the share of dead records that stops a run: by default half for files only, never with a socket."""
    if options.stop_at is not None:
        return options.stop_at
    return 0.5 if is_finite else 1.0


def too_many_dead(totals: Counts, stop_at: float) -> TooManyDeadError | None:
    """Return the error that ends a run in which more than the share `stop_at` of the records died."""
    settled = totals.scored + totals.dead_lettered
    if settled < SHARE_COUNTS_FROM or totals.dead_lettered <= stop_at * settled:
        return None
    return TooManyDeadError(totals.dead_lettered, settled, stop_at)
