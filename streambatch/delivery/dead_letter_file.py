"""The output that dead letters are written to: a file, in segments if the options say so, or nowhere.

It is a writer as a sink's is, but for two things: the file is created with the first dead letter only, and a folder
that can't be written is an error at once, and not with the first of them.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

from anyio import to_thread

from streambatch.core.checkpoints import CommitMark, OutputMark
from streambatch.core.clock import Clock, SystemClock
from streambatch.core.parts import Writer
from streambatch.delivery.dead_letters import DeadLetterOptions
from streambatch.storage.files import disk_error
from streambatch.storage.segments import Rotation, SegmentedFile

FILE_NAME = "dead_letters.jsonl"
"""Its name in the state folder, unless an option names another file."""
OWNER = "dead_letter"
"""What errors of the dead-letter file name as their sink."""


def dead_letter_writer(options: DeadLetterOptions, state_dir: Path | None, clock: Clock) -> Writer:
    """Return the writer for dead letters; without a path and a state folder they are counted, and kept nowhere."""
    path = Path(options.path) if options.path is not None else state_dir and state_dir / FILE_NAME
    return DeadLetterFile(path, options.rotate, clock) if path is not None else _Nowhere()


class _Nowhere(Writer):
    """Keeps nothing."""

    name = OWNER

    async def open(self, header: bytes) -> None: ...

    async def write(self, payload: bytes) -> None: ...

    async def sync(self) -> int:
        return 0

    async def close(self) -> None: ...


class DeadLetterFile(Writer):
    """The dead letters of a pipeline, on disk; a file that is missing is created with the first of them.

    Raises SinkError and HeldError as `AppendFile` does; asyncio only.
    """

    name = OWNER
    is_rewindable = True
    is_segmented = True

    def __init__(self, path: Path, rotation: Rotation | None = None, clock: Clock | None = None) -> None:
        self.path = path
        self._file = SegmentedFile(path, OWNER, rotation, clock or SystemClock())
        self._file.layout = "dead letters"
        self._writes = self._durable_writes = 0

    @property
    def durable_writes(self) -> int:
        return self._durable_writes

    def restore(self, mark: OutputMark | None, commit: CommitMark) -> None:
        """Take over, before `open`, how far the dead letters were acked; see `Writer.restore`."""
        self._file.restore(mark, commit)

    def mark(self) -> OutputMark:
        """Return how far they go: the number of the open segment and its length in bytes; 0 also if it isn't there."""
        return self._file.mark()

    async def open(self, header: bytes = b"") -> None:
        """Claim the file if it is there, taken back to where it was acked to; if not, make sure of its folder."""
        try:
            await self._start()
        except BaseException:
            await self._file.close()
            raise

    async def write(self, payload: bytes) -> None:
        """Append encoded dead letters; when it raises, none of them is in the file."""
        if payload:
            await self._append(payload)
        self._writes += 1

    async def close_due(self) -> None:
        """Close a segment that is old enough. For the task that writes."""
        if self._file.is_due():
            await self._file.roll()

    async def sync(self) -> int:
        """Make all that was written durable. Returns the length in bytes of all that this wrote to, 0 while there is
        nothing."""
        writes = self._writes  # a write may go on meanwhile
        length = await self._file.sync() if self._file.is_open else 0
        self._durable_writes = max(self._durable_writes, writes)
        return length

    async def finish(self) -> None:
        """Close the last segment: nothing more will be written."""
        if self._file.is_open:
            await self._file.finish()
        self._durable_writes = self._writes

    async def close(self) -> None:
        """Give the file back; does nothing when it is not open."""
        await self._file.close()

    async def _append(self, payload: bytes) -> None:
        if not self._file.is_claimed:
            await self._claim()
        if self._file.is_due(len(payload)):
            await self._file.roll()
        await self._file.write(payload)
        self._file.begin_record()

    async def _start(self) -> None:
        file = self._file
        if file.has_mark:
            await file.take_back()
        else:
            await file.look()
            await file.settle()
        if file.is_claimed:
            await self._go_on()
        else:
            await self._prepare()
        file.opened()

    async def _prepare(self) -> None:
        try:
            await to_thread.run_sync(_prepare_folder, self.path.parent)
        except OSError as error:
            raise disk_error(OWNER, error, self.path.parent) from error
        if not self._file.is_restored:
            await self._file.close()  # claimed with the first dead letter: another process may have one before

    async def _claim(self) -> None:
        try:
            if not self._file.is_open:
                # Another process may have closed segments since: their numbers are taken.
                await self._file.look()
            await self._file.begin()
            await self._go_on()
        except BaseException:
            if not self._file.is_restored:
                await self._file.close()
            raise

    async def _go_on(self) -> None:
        """Write after what the file holds, on a line of its own."""
        # A process that was killed may have left half a line.
        await self._file.file.end_line()
        if self._file.length:
            self._file.begin_record()


def _prepare_folder(folder: Path) -> None:
    """Create the folder, and fail now rather than at the first dead letter if nothing can be created in it."""
    folder.mkdir(parents=True, exist_ok=True)
    # Asked, and not tried: a file that is created to see would have to be removed again.
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))
