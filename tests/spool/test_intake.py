"""A key that comes back with the same records gets the first answer, however the body came."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from struct import pack

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streambatch.codecs.formats import framing_for_format
from streambatch.core.chunks import Partition
from streambatch.spool.intake import SpoolIntake
from streambatch.spool.log import SpoolLog
from streambatch.testing.fakes import CollectingIntake

MAX_BYTES = 16 << 20
MAX_RECORD_BYTES = 8

LINE = st.sampled_from([b"", b"\r", b"a", b"bc\r", b"\x20", b'"q\n\nq",1', b'"', b"more than fits"])
LINES = st.lists(LINE, max_size=8).map(b"\n".join)
LENGTH_PREFIXED = st.lists(st.sampled_from([b"", b"\n", b"\n\na", b"more than fits"])).map(
    lambda records: b"".join(pack(">I", len(record)) + record for record in records)
)
BODY = st.one_of(
    st.tuples(st.just("jsonl"), LINES),
    st.tuples(st.just("csv"), LINES.map(lambda rows: b"a,b\n" + rows)),
    st.tuples(st.just("csv"), LINES),
    st.tuples(st.just("length_prefixed"), LENGTH_PREFIXED),
)
CUTS = st.lists(st.integers(0, 60), max_size=6)


@settings(max_examples=100, deadline=None)
@given(BODY, CUTS, CUTS)
def test_the_same_body_is_known_again_however_it_is_cut(
    tmp_path_factory: pytest.TempPathFactory, body: tuple[str, bytes], first: list[int], second: list[int]
) -> None:
    format, data = body
    answers = anyio.run(posted, tmp_path_factory.mktemp("spool"), format, [cut(data, first), cut(data, second)])
    assert answers[0] == answers[1]


def cut(body: bytes, at: Sequence[int]) -> list[bytes]:
    bounds = [0, *sorted(each % (len(body) + 1) for each in at), len(body)]
    return [body[start:end] for start, end in pairwise(bounds)]


async def posted(folder: Path, format: str, bodies: Sequence[Sequence[bytes]]) -> list[int]:
    """Store each body with the same key, and return what they are answered. Raises KeyReused."""
    intake = CollectingIntake()
    log = SpoolLog(
        "in",
        folder,
        max_bytes=MAX_BYTES,
        window=3600.0,
        memory=intake.memory,
        clock=intake.clock,
        observer=intake.observer,
        received=intake.received,
        lost=intake.lost,
    )
    await log.open(0, 0)
    spool = SpoolIntake(intake, log, MAX_BYTES, folder)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(log.write)
        answers = [await _posted(spool, format, blocks) for blocks in bodies]
        log.stop()
    await log.close()
    return answers


async def _posted(spool: SpoolIntake, format: str, blocks: Sequence[bytes]) -> int:
    framer = framing_for_format(format).framer(Partition("in", "1"), max_record_bytes=MAX_RECORD_BYTES)
    request = await spool.begin("key")
    for chunk in [*(chunk for block in blocks for chunk in framer.feed(block, 0.0)), *framer.end(0.0)]:
        spool.memory.take(chunk.size)
        await request.put(chunk)
    return await request.commit()
