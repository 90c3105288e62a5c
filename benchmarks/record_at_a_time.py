"""What one writes first: each line awaited, put on an asyncio.Queue and got with a timeout."""

import asyncio
import time
from pathlib import Path

import aiofiles
import msgspec
import numpy as np

from benchmarks.feed import BIAS, MEAN, SCALE, WEIGHTS

_QUEUE_RECORDS = 10_000


class Record(msgspec.Struct):
    id: int | str
    features: list[float]


def run(source: Path, target: Path, batch: int, max_wait: float) -> None:
    """Score `source` into `target` in batches of at most `batch` records or `max_wait` seconds."""
    asyncio.run(_run(source, target, batch, max_wait))


async def _run(source: Path, target: Path, batch: int, max_wait: float) -> None:
    queue: asyncio.Queue[bytes | None] = asyncio.Queue(_QUEUE_RECORDS)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(_read(source, queue))
        tasks.create_task(_score(queue, target, batch, max_wait))


async def _read(source: Path, queue: "asyncio.Queue[bytes | None]") -> None:
    async with aiofiles.open(source, "rb") as lines:
        async for line in lines:
            await queue.put(line)
    await queue.put(None)


async def _score(queue: "asyncio.Queue[bytes | None]", target: Path, batch: int, max_wait: float) -> None:
    more = True
    async with aiofiles.open(target, "wb") as scores:
        while more:
            lines, more = await _batch(queue, batch, max_wait)
            if lines:
                await scores.write(_scored(lines))


async def _batch(queue: "asyncio.Queue[bytes | None]", size: int, max_wait: float) -> tuple[list[bytes], bool]:
    """Return the next lines, and whether there are more after them."""
    line = await queue.get()
    lines: list[bytes] = []
    deadline = time.monotonic() + max_wait
    while line is not None:
        lines.append(line)
        if len(lines) == size:
            return lines, True
        try:
            line = await asyncio.wait_for(queue.get(), deadline - time.monotonic())
        except TimeoutError:
            return lines, True
    return lines, False


def _scored(lines: list[bytes]) -> bytes:
    records = [msgspec.json.decode(line, type=Record) for line in lines]
    x = np.array([record.features for record in records], np.float32)
    if x.shape != (len(lines), len(MEAN)) or not np.isfinite(x).all():
        raise ValueError("a record has a wrong shape, or a feature that is not finite")
    scores = ((x - MEAN) / SCALE).astype(np.float32) @ WEIGHTS.astype(np.float32) + np.float32(BIAS)
    rows = ({"id": record.id, "score": float(score)} for record, score in zip(records, scores, strict=True))
    return b"".join(msgspec.json.encode(row) + b"\n" for row in rows)
