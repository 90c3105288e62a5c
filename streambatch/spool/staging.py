"""A file in which the first part of a large request waits for the rest. It has no name, and dies with the process."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from anyio import to_thread

from streambatch.core.spooling import SpoolFull
from streambatch.spool.blocks import NewBlock
from streambatch.spool.keys import write_whole
from streambatch.spool.space import SpoolSpace


class Staging:
    """Blocks on disk that are not committed. They take room in the spool until `close`."""

    def __init__(self, folder: Path, space: SpoolSpace) -> None:
        self._folder, self._space = folder, space
        self._size = 0
        self._file: Any = None

    def fileno(self) -> int | None:
        """Return the file that holds the blocks, one after the other; None if there are none."""
        return self._file.fileno() if self._file is not None else None

    async def write(self, blocks: Sequence[NewBlock]) -> None:
        """Move the bytes of blocks to disk. Raises SpoolFull."""
        data = b"".join(piece for block in blocks for piece in block.packed)
        # Counted before it is written: a write that fails half-way has taken room too.
        offset, self._size = self._size, self._size + len(data)
        self._space.staged += len(data)
        try:
            if self._file is None:
                # On the disk of the spool, whose room it takes; and without a name, so that a crash leaves nothing to
                # remove.
                unnamed = partial(tempfile.TemporaryFile, buffering=0, dir=self._folder)
                self._file = await to_thread.run_sync(unnamed)
            await to_thread.run_sync(write_whole, self._file.fileno(), data, offset)
        except OSError as error:
            raise SpoolFull(f"the spool can't be written: {error.strerror or error}") from error
        # An empty `packed` says that the block's bytes are in the file.
        for block in blocks:
            block.packed = ()

    def close(self) -> None:
        """Let go of the file and its room."""
        self._space.staged -= self._size
        if self._file is not None:
            self._file.close()
