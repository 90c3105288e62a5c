"""The reader of a source with a spool: its records go to disk first, and from there into the pipeline.

Records count as received once they are durable in the spool, and a client that is answered is answered then. All of a
source's records are one partition, in the order in which they were stored; a restart goes on after the acked ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import anyio

from streambatch.core.checkpoints import PartitionNotes, SavedPartition
from streambatch.core.errors import OptionError
from streambatch.core.intake import Intake
from streambatch.core.parts import Reader, Site, Source
from streambatch.core.spooling import DEDUPE_SECONDS, SpoolOptions, SpoolStatus
from streambatch.spool.blocks import PARTITION, tally
from streambatch.spool.intake import SpoolIntake
from streambatch.spool.log import SpoolLog

FOLDER = "spool"


class SpooledReader(Reader):
    """Runs a reader with a spool between it and the pipeline. Its folder is `<state_dir>/spool/<name>`.

    The spool belongs to the holder of the state_dir: two processes must not run it at once.
    """

    is_resumable = True
    counts_recovered = True

    def __init__(self, reader: Reader, options: SpoolOptions, dedupe_window: float, state_dir: Path) -> None:
        self.name, self._reader, self._options, self._dedupe_window = reader.name, reader, options, dedupe_window
        self.folder = state_dir / FOLDER / reader.name
        self._saved: SavedPartition | None = None
        self._log: SpoolLog | None = None
        self._is_noted = False

    @property
    def spool(self) -> SpoolStatus:
        """The spool as it is now; as it was at last once the reader has ended."""
        if self._log is None:
            return SpoolStatus(size=0, capacity=self._options.max_bytes, corrupt_segments=0, backlog_records=0)
        return self._log.status

    @property
    def address(self) -> str | None:
        return self._reader.address

    async def listening(self) -> str | None:
        return await self._reader.listening()

    async def run(self, intake: Intake) -> None:
        """Recover the spool, then run the reader and hand over the stored records, until cancelled.

        Cancelled, it stores what the reader has read, hands over what is in memory, and leaves the rest in the spool.
        Raises what the reader raises, and SourceError when nothing can be stored any more.
        """
        log = self._log = self._new_log(intake)
        saved = self._saved or SavedPartition(position=0, read_to=0, notes={})
        acked, known_to = saved.position, max(saved.position, saved.read_to)
        found, now = await log.open(acked, known_to), intake.clock.monotonic()
        if found.known:
            intake.recovered(tally(self.name, found.known, known_to - acked, acked, now))
        if found.new:
            intake.received(tally(self.name, found.new, log.end - known_to, known_to, now))
        try:
            await self._run(intake, log)
        finally:
            with anyio.CancelScope(shield=True):
                await log.close()

    def resume(self, saved: Mapping[str, SavedPartition]) -> None:
        """Take over how far the spool was acked."""
        self._saved = saved.get(PARTITION)

    def notes(self) -> Mapping[str, PartitionNotes | None]:
        """Return the spool's one partition, once; it is never over."""
        if self._is_noted:
            return {}
        self._is_noted = True
        return {PARTITION: {}}

    def acked(self, positions: Mapping[str, int]) -> None:
        """Remove the segments whose records are all acked."""
        position = positions.get(PARTITION)
        if position is not None and self._log is not None:
            self._log.acked(position)

    async def _run(self, intake: Intake, log: SpoolLog) -> None:
        written, handed_over = anyio.Event(), anyio.Event()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_write, log, written)
            tasks.start_soon(_hand_over, log, intake, handed_over)
            tasks.start_soon(_hurry_when_cancelled, log)
            try:
                await self._reader.run(SpoolIntake(intake, log, self._options.max_bytes, self.folder))
            finally:
                # In this order: the reader has ended, so nothing more is appended; the writer stores what is left; the
                # hand-over stops; and what is in memory goes on into the pipeline, since it is durable.
                log.stop()
                with anyio.CancelScope(shield=True):
                    await written.wait()
                tasks.cancel_scope.cancel()
                with anyio.CancelScope(shield=True):
                    await handed_over.wait()
                    while (chunk := log.take_ready()) is not None:
                        await intake.enqueue(chunk)

    def _new_log(self, intake: Intake) -> SpoolLog:
        return SpoolLog(
            self.name,
            self.folder,
            max_bytes=self._options.max_bytes,
            window=self._dedupe_window,
            memory=intake.memory,
            clock=intake.clock,
            observer=intake.observer,
            received=intake.received,
            lost=intake.lost,
        )


def reader_of(source: Source, site: Site) -> Reader:
    """Return a new reader of a source, with the spool that its option `spool` asks for between it and the pipeline.

    site: the pipeline's. Raises OptionError when there is no state_dir to keep it in.
    """
    site = replace(site, part=f"source.{source.name}")
    if source.spool is None:
        return source.build(site)
    if site.state_dir is None:
        raise OptionError(f"{source.name}.spool", "no state_dir", "a spool only with a state_dir to keep it in")
    return SpooledReader(source.build(site), source.spool, source.dedupe_window or DEDUPE_SECONDS, site.state_dir)


async def _write(log: SpoolLog, written: anyio.Event) -> None:
    try:
        # `stop` ends the writer, and no cancellation: what the source has read is stored first.
        with anyio.CancelScope(shield=True):
            await log.write()
    finally:
        written.set()


async def _hurry_when_cancelled(log: SpoolLog) -> None:
    """Let puts go on that wait for room: the source is cancelled too, and ends only after them."""
    try:
        await anyio.sleep_forever()
    finally:
        log.hurry()


async def _hand_over(log: SpoolLog, intake: Intake, ended: anyio.Event) -> None:
    try:
        while True:
            # What `next` returned is in the spool's memory no more: a stop must not come between it and the pipeline.
            chunk = await log.next()
            with anyio.CancelScope(shield=True):
                await intake.enqueue(chunk)
    finally:
        ended.set()
