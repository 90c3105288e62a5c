"""The first stage of a run: sources are read into the inbox until they end or a stop is asked for.

However they end, what they put is in the inbox by then, which is closed after it: that ends the stages behind it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import anyio

from streambatch.core.parts import Reader
from streambatch.core.report import QueueStatus, ReadingStatus
from streambatch.microbatch.inbox import Inbox, QueueLimits
from streambatch.microbatch.intake import SourceIntake
from streambatch.pipeline.status import SourceFailures


class Input(NamedTuple):
    """A running source, and its way into the inbox."""

    reader: Reader
    intake: SourceIntake


class Reading:
    """The readers of one run."""

    def __init__(
        self, inputs: Sequence[Input], inbox: Inbox, failures: SourceFailures, stop_asked: anyio.Event
    ) -> None:
        self.inbox, self.failures = inbox, failures
        self._inputs, self._stop_asked = inputs, stop_asked
        self.readers: Mapping[str, Reader] = {each.reader.name: each.reader for each in inputs}

    async def run(self) -> None:
        """Read until all sources have ended or a stop is asked for; then close the inbox."""
        # Two groups: the inner one ends with its readers, and then the task that waits for a stop has nothing to wait
        # for.
        async with anyio.create_task_group() as reading:
            reading.start_soon(self._stop, reading.cancel_scope)
            async with anyio.create_task_group() as readers:
                for each in self._inputs:
                    readers.start_soon(self._read, each, name=f"source {each.reader.name}")
            reading.cancel_scope.cancel()
        # Only now that no reader runs: the batcher ends once a closed inbox is empty, and would miss a later chunk.
        self.inbox.close("shutdown" if self._stop_asked.is_set() else "flush")

    def reload(self, limits: QueueLimits) -> None:
        """Let no more wait than other limits allow from now on."""
        self.inbox.resize(limits)

    def status(self, now: float) -> ReadingStatus:
        """Return what the sources put, and what they have still to read."""
        inbox, readers = self.inbox, self.readers
        return ReadingStatus(
            queue=QueueStatus(
                records=inbox.records,
                size=inbox.size,
                capacity_records=inbox.limits.max_records,
                capacity_size=inbox.limits.max_bytes,
                oldest_arrival=inbox.oldest_arrival,
            ),
            spools={name: spool for name, reader in readers.items() if (spool := reader.spool) is not None},
            waiting_seconds={each.reader.name: each.intake.waited(now) for each in self._inputs},
            backlogs={
                name: backlog for name, reader in self.readers.items() if (backlog := reader.backlog()) is not None
            },
        )

    @property
    def spooled_records(self) -> int:
        """Records that are durable in spools and were not handed over."""
        return sum(spool.backlog_records for reader in self.readers.values() if (spool := reader.spool) is not None)

    async def _read(self, each: Input) -> None:
        await each.reader.run(each.intake)
        if not self._stop_asked.is_set():  # or it may not have come to its end
            self.inbox.end(each.reader.name)

    async def _stop(self, scope: anyio.CancelScope) -> None:
        await self._stop_asked.wait()
        self.inbox.hurry("shutdown")  # sources may wait for what becomes of the records they put
        scope.cancel()
