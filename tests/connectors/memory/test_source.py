"""Blocks that the program itself brings: framed like those of a file, wherever they are cut."""

from collections.abc import AsyncIterator, Iterator

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streambatch.connectors.memory.source import BLOCK_BYTES, MemorySource
from streambatch.core.errors import ConfigError
from streambatch.core.parts import Site
from tests.connectors.intakes import KeepingIntake

pytestmark = pytest.mark.anyio


@given(st.lists(st.text("ab1", min_size=1).map(str.encode)), st.data())
def test_records_do_not_depend_on_the_cut(lines: list[bytes], data: st.DataObject) -> None:
    raw = b"".join(line + b"\n" for line in lines)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(raw)), max_size=5)))
    blocks = [raw[start:end] for start, end in zip([0, *cuts], [*cuts, len(raw)], strict=True)]

    async def run() -> None:
        intake = KeepingIntake()
        await MemorySource(blocks).build(Site()).run(intake)
        assert intake.records() == [line + b"\n" for line in lines]
        assert intake.budget.used == 0

    anyio.run(run)


async def test_an_unterminated_last_record_counts() -> None:
    intake = KeepingIntake()
    source = MemorySource([b"1\n2"])
    await source.build(Site()).run(intake)
    assert intake.by_partition() == {"run-1": [b"1\n", b"2\n"]}
    assert source.is_finite


async def test_a_large_block_is_taken_in_by_parts() -> None:
    intake = KeepingIntake(memory=8 << 20)
    line = b"x" * 99 + b"\n"
    await MemorySource([line * 200_000]).build(Site()).run(intake)
    assert intake.count == 200_000
    assert intake.budget.peak < 3 * BLOCK_BYTES
    assert intake.budget.used == 0


async def test_an_endless_iterable_lets_others_run_and_can_be_stopped() -> None:
    def count() -> Iterator[bytes]:
        number = 0
        while True:
            yield b"%d\n" % number
            number += 1

    intake = KeepingIntake()
    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(MemorySource(count()).build(Site()).run, intake)
            await intake.holds(100)
            tasks.cancel_scope.cancel()
    assert intake.records() == [b"%d\n" % number for number in range(intake.count)]


async def test_an_asynchronous_generator_is_closed_when_left_early() -> None:
    is_closed = False

    async def two_and_then_silence() -> AsyncIterator[bytes]:
        nonlocal is_closed
        try:
            yield b"1\n2\nhalf"
            await anyio.sleep_forever()
        finally:
            is_closed = True

    intake = KeepingIntake()
    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(MemorySource(two_and_then_silence()).build(Site()).run, intake)
            await intake.holds(2)
            tasks.cancel_scope.cancel()
    assert is_closed
    assert intake.records() == [b"1\n", b"2\n"]
    assert intake.budget.used == 0


async def test_an_asynchronous_generator_is_closed_when_the_pipeline_gives_up() -> None:
    is_closed = False

    async def forever() -> AsyncIterator[bytes]:
        nonlocal is_closed
        try:
            while True:
                yield b"1\n"
        finally:
            await anyio.lowlevel.checkpoint()
            is_closed = True

    class RefusingIntake(KeepingIntake):
        async def put(self, chunk: object) -> None:
            raise RuntimeError("given up")

    with pytest.raises(RuntimeError, match="given up"):
        await MemorySource(forever()).build(Site()).run(RefusingIntake())
    assert is_closed


@pytest.mark.parametrize("block", [b"1\n", bytearray(b"1\n"), "1\n"])
async def test_a_single_block_is_no_iterable_of_blocks(block: object) -> None:
    with pytest.raises(ConfigError, match=f"blocks: found a single {type(block).__name__}; allowed: an iterable"):
        MemorySource(block)  # type: ignore[arg-type]
