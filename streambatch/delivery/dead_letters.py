"""Dead letters: what became of each record that could not be scored, one JSON line each.

A dead letter holds the record's exact bytes, as text where they are UTF-8 and else as base64, so that it can be fixed
and sent again.
"""

from __future__ import annotations

import errno
import os
from base64 import b64encode
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import msgspec
from anyio import to_thread
from pydantic import Field

from streambatch.core.chunks import Reason
from streambatch.core.clock import Clock, SystemClock, rfc3339
from streambatch.core.durable import Commit, Mark
from streambatch.core.options import options
from streambatch.core.outcomes import Reject, Stage
from streambatch.core.text import encodable
from streambatch.storage.files import disk_error
from streambatch.storage.segments import Rotation, SegmentedFile

OWNER = "dead_letter"
"""What errors of the dead-letter file name as their sink."""


@options
class DeadLetterOptions:
    """Where records that can't be scored go, and how many are too many."""

    path: str | None = None
    """File they are appended to; `dead_letters.jsonl` in the state folder if absent. Created with the first one."""
    stop_at: Annotated[float, Field(ge=0, le=1)] | None = None
    """Stop when more than this share of the records died, of at least 1,000; 1 is never. Default: 0.5 where all sources
    are files, else 1."""
    rotate: Rotation | None = None
    """Close a segment at this size or age and begin the next, such as `{ max_bytes = "256MiB", max_age = "1h" }`; named
    as a sink's. Absent: one file."""


class DeadLetter(msgspec.Struct, omit_defaults=True, kw_only=True):
    """A dead letter as written; either `record` or `record_base64` is there."""

    at: str
    pipeline: str
    run: str
    stage: Stage
    reason: Reason
    error: str
    source: str
    partition: str
    position: int
    record: str | None = None
    record_base64: str | None = None
    truncated: bool = False


_ENCODER = msgspec.json.Encoder()


def encode_dead_letters(rejects: Iterable[Reject], *, at: float, pipeline: str, run: str) -> bytes:
    """Return the rejects as lines of JSON. at: wall seconds."""
    moment = rfc3339(at)
    return _ENCODER.encode_lines([_dead_letter(reject, moment, pipeline, run) for reject in rejects])


class DeadLetterFile:
    """The dead letters of a pipeline, on disk; a file that is missing is created with the first of them.

    Raises SinkError and HeldError as `AppendFile` does; asyncio only.
    """

    def __init__(self, path: Path, rotation: Rotation | None = None, clock: Clock | None = None) -> None:
        self.path = path
        self._file = SegmentedFile(path, OWNER, rotation, clock or SystemClock())
        self._file.layout = "dead letters"

    def restore(self, mark: Mark | None, commit: Commit) -> None:
        """Learn, before `open`, how far the dead letters were acked; see `RewindableOutput`."""
        self._file.restore(mark, commit)

    def mark(self) -> Mark:
        """Return how far they go: the number of the open segment and its length in bytes; 0 also if it isn't there."""
        return self._file.mark()

    async def open(self) -> None:
        """Claim the file if it is there, taken back to where it was acked to; if not, make sure of its folder."""
        try:
            await self._start()
        except BaseException:
            await self._file.close()
            raise

    async def write(self, payload: bytes) -> None:
        """Append encoded dead letters; when it raises, none of them is in the file."""
        if not payload:
            return
        if not self._file.is_claimed:
            await self._claim()
        if self._file.is_due(len(payload)):
            await self._file.roll()
        await self._file.write(payload)
        self._file.begin_record()

    async def close_due(self) -> None:
        """Close a segment that is old enough. For the task that writes."""
        if self._file.is_due():
            await self._file.roll()

    async def sync(self) -> int:
        """Make all that was written durable. Returns the length in bytes of all that this wrote to, 0 while there is
        nothing."""
        return await self._file.sync() if self._file.is_open else 0

    async def finish(self) -> None:
        """Close the last segment: nothing more will be written."""
        if self._file.is_open:
            await self._file.finish()

    async def close(self) -> None:
        """Give the file back; does nothing when it is not open."""
        await self._file.close()

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
            await self._file.close()  # whoever is first with a dead letter has the file

    async def _claim(self) -> None:
        try:
            if not self._file.is_open:
                await self._file.look()
            await self._file.begin()
            await self._go_on()
        except BaseException:
            if not self._file.is_restored:
                await self._file.close()
            raise

    async def _go_on(self) -> None:
        """Go on after what the file holds."""
        await self._file.file.end_line()
        if self._file.length:
            self._file.begin_record()


def _dead_letter(reject: Reject, at: str, pipeline: str, run: str) -> DeadLetter:
    text, base64 = _as_text(reject.record)
    return DeadLetter(
        at=at,
        pipeline=pipeline,
        run=run,
        stage=reject.stage,
        reason=reject.reason,
        error=encodable(reject.error),
        source=reject.partition.source,
        partition=encodable(reject.partition.name),
        position=reject.position,
        record=text,
        record_base64=base64,
        truncated=reject.truncated,
    )


def _as_text(record: bytes) -> tuple[str | None, str | None]:
    try:
        return record.decode(), None
    except UnicodeDecodeError:
        return None, b64encode(record).decode()


def _prepare_folder(folder: Path) -> None:
    """Create the folder, and fail now rather than at the first dead letter if nothing can be created in it."""
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))
