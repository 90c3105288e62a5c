"""Outputs that checkpoints know: after any crash they hold what was committed, once, and go on from there."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streambatch.codecs.containers import Compression
from streambatch.codecs.formats import OutputFormat
from streambatch.connectors.files.sink import FileSink
from streambatch.core.checkpoints import OutputMark
from streambatch.core.errors import HeldError, SinkError, SinkOutage
from streambatch.core.parts import Site
from streambatch.delivery.dead_letter_file import DeadLetterFile
from streambatch.storage.segments import Rotation
from tests.connectors.files.written import FORMATS, encoder, payload_of, rows_in
from tests.moved_clock import MovedClock
from tests.simulated_disk import Crash, SimulatedDisk

pytestmark = pytest.mark.anyio
EACH = pytest.mark.parametrize(("format", "compression"), FORMATS)
ROTATION = Rotation(max_bytes=700, max_age=10.0)
ROWS = 7
"""Rows of a payload."""


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Checkpoints:
    """What is durable of a sink: its mark, and the payloads that it covers."""

    def __init__(self) -> None:
        self.mark: OutputMark | None = None
        self.acked: tuple[int, ...] = ()
        self.disk: SimulatedDisk | None = None

    def store(self, mark: OutputMark, acked: Sequence[int]) -> None:
        self.mark, self.acked = mark, tuple(acked)
        if self.disk is not None:
            self.disk.note = (mark, self.acked)
            self.disk.look()


class Run:
    """A restored sink that writes numbered payloads, as a pipeline does between two crashes."""

    def __init__(
        self, folder: Path, checkpoints: Checkpoints, format: OutputFormat, compression: Compression, **options: Any
    ):
        self.checkpoints, self.format = checkpoints, format
        self.clock, self.encode = MovedClock(), encoder(format)
        self.written = list(checkpoints.acked)
        self.marked: tuple[OutputMark, int] | None = None
        self.sink = FileSink(str(folder / f"s.{format}"), format=format, compression=compression, **options).build(
            Site(clock=self.clock)
        )
        self.sink.restore(checkpoints.mark, self.commit)

    async def open(self) -> None:
        await self.sink.open(self.encode.header())
        self.durable = len(self.written)

    async def write(self, number: int) -> None:
        await self.sink.write(payload_of(self.encode, number * ROWS, ROWS))
        self.written.append(number)

    async def checkpoint(self) -> None:
        mark = self.sink.mark()
        await self.sink.sync()
        count = len(self.checkpoints.acked)
        if self.format != "parquet":
            count = len(self.written)
        elif self.sink.durable_writes:
            count = self.durable + self.sink.durable_writes
        self.checkpoints.store(mark, self.written[:count])

    async def commit(self, mark: OutputMark) -> None:
        self.checkpoints.store(mark, self.written)


def closed_in(folder: Path) -> list[Path]:
    return sorted(folder.glob("s-*"))


def payloads_in(folder: Path, format: OutputFormat) -> list[int]:
    """Return the numbers of the payloads in closed segments and the one that is open, each whole."""
    paths = [*closed_in(folder), *folder.glob(f"s.{format}*")]
    rows = [row for row, _ in rows_in([path for path in paths if path.stat().st_size], format)]
    numbers = [row // ROWS for row in rows[::ROWS]]
    assert rows == [number * ROWS + at for number in numbers for at in range(ROWS)]
    return numbers


Step = Literal["write", "checkpoint", "wait", "close_due", "crash", "finish"]
steps = st.lists(
    st.sampled_from(["write", "write", "write", "checkpoint", "wait", "close_due", "crash", "finish"]), max_size=25
)


@EACH
@pytest.mark.parametrize("is_rotated", [True, False])
@settings(max_examples=12, deadline=None)
@given(steps=steps)
def test_after_any_crashes_every_payload_is_there_once(
    format: OutputFormat, compression: Compression, is_rotated: bool, steps: Sequence[Step]
) -> None:
    async def run(folder: Path) -> None:
        options: dict[str, Any] = {"rotate": ROTATION} if is_rotated or format == "parquet" else {}
        checkpoints, number = Checkpoints(), 0
        now = Run(folder, checkpoints, format, compression, **options)
        await now.open()
        for step in steps:
            if step == "write":
                await now.write(number)
                number += 1
            elif step == "checkpoint":
                await now.checkpoint()
            elif step == "wait":
                now.clock.now += 6.0
            elif step == "close_due":
                await now.sink.close_due()
            elif step == "finish" and options:
                await now.sink.finish()
            elif step == "crash":
                await now.sink.close()
                now = Run(folder, checkpoints, format, compression, **options)
                await now.open()
        await now.sink.finish()
        await now.sink.close()
        assert payloads_in(folder, format) == now.written
        now = Run(folder, checkpoints, format, compression, **options)
        await now.open()
        await now.write(number)
        await now.sink.finish()
        await now.sink.close()
        assert payloads_in(folder, format) == now.written

    with TemporaryDirectory() as folder:
        anyio.run(run, Path(folder))


@EACH
@pytest.mark.parametrize("is_rotated", [True, False])
async def test_power_may_fail_at_every_step(
    tmp_path: Path, format: OutputFormat, compression: Compression, is_rotated: bool
) -> None:
    folder, again = tmp_path / "out", tmp_path / "again"
    folder.mkdir()
    options: dict[str, Any] = {"rotate": ROTATION} if is_rotated or format == "parquet" else {}
    checkpoints = Checkpoints()
    with SimulatedDisk(folder) as disk:
        checkpoints.disk = disk
        run = Run(folder, checkpoints, format, compression, **options)
        await run.open()
        for number in range(8):
            await run.write(number)
            if number in (1, 4):
                await run.checkpoint()
            if number == 5:
                run.clock.now += 20
                await run.sink.close_due()
        await run.sink.finish()
        await run.sink.close()
        await run_again(run, folder, checkpoints, format, compression, options)
    crashes = list(disk.crashes(per_step=12))
    assert len(crashes) > 20
    for crash in crashes:
        await check_crash(crash, again, format, compression, options)


async def run_again(
    before: Run, folder: Path, checkpoints: Checkpoints, format: OutputFormat, compression: Compression, options: Any
) -> None:
    """Restart after the last payloads were not acked, so that the output is taken back."""
    run = Run(folder, checkpoints, format, compression, **options)
    await run.open()
    for number in range(100, 103):
        await run.write(number)
    await run.checkpoint()
    await run.sink.close()


async def check_crash(crash: Crash, folder: Path, format: OutputFormat, compression: Compression, options: Any) -> None:
    crash.lay_out(folder)
    checkpoints = Checkpoints()
    checkpoints.mark, acked = crash.note or (None, ())
    checkpoints.acked = acked
    closed = {path.name: path.read_bytes() for path in closed_in(folder)}
    run = Run(folder, checkpoints, format, compression, **options)
    await run.open()
    assert payloads_in(folder, format) == list(acked)
    assert {name: (folder / name).read_bytes() for name in closed} == closed
    await run.write(1000)
    await run.sink.finish()
    await run.sink.close()
    assert payloads_in(folder, format) == [*acked, 1000]


async def stored(folder: Path, payloads: int, **options: Any) -> Checkpoints:
    """Write and commit some payloads of a jsonl sink, and stop."""
    checkpoints = Checkpoints()
    run = Run(folder, checkpoints, "jsonl", "none", **options)
    await run.open()
    for number in range(payloads):
        await run.write(number)
    await run.checkpoint()
    await run.sink.close()
    return checkpoints


def length_of(checkpoints: Checkpoints) -> int:
    assert checkpoints.mark is not None
    return int(checkpoints.mark["length"])


async def test_an_output_that_is_missing_or_too_short_is_named_with_what_to_do(tmp_path: Path) -> None:
    checkpoints = await stored(tmp_path, 2)
    path, length = tmp_path / "s.jsonl", length_of(checkpoints)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(SinkError) as short:
        await Run(tmp_path, checkpoints, "jsonl", "none").open()
    path.unlink()
    with pytest.raises(SinkError) as missing:
        await Run(tmp_path, checkpoints, "jsonl", "none").open()
    hint = (
        "; put back the file that was there, or its path, or move the output away and forget its state with "
        "`streambatch state reset`"
    )
    assert str(short.value) == f"sink file: {path} has {length - 1} bytes, and was stored with {length}{hint}"
    assert str(missing.value) == f"sink file: {path} is missing, and was stored with {length} bytes{hint}"
    assert list(tmp_path.iterdir()) == []


async def test_an_output_in_another_layout_or_newer_than_its_state_is_refused(tmp_path: Path) -> None:
    checkpoints = await stored(tmp_path, 2)
    (tmp_path / "s.jsonl").rename(tmp_path / "s.csv")
    with pytest.raises(SinkError, match=r"s.csv was written as jsonl .*, and is now to be csv \(.*id,score\)"):
        await Run(tmp_path, checkpoints, "csv", "none").open()
    old = await stored(tmp_path / "more", 1, rotate=ROTATION)
    (tmp_path / "more" / "s-00000001.jsonl").write_bytes(b"")
    with pytest.raises(SinkError, match=r"s-00000001.jsonl is newer than its state; .* `streambatch state reset`"):
        await Run(tmp_path / "more", old, "jsonl", "none", rotate=ROTATION).open()


async def test_closed_segments_may_have_been_moved_away(tmp_path: Path) -> None:
    checkpoints = await stored(tmp_path, 10, rotate=ROTATION)
    before = len(closed_in(tmp_path))
    for path in closed_in(tmp_path):
        path.unlink()
    run = Run(tmp_path, checkpoints, "jsonl", "none", rotate=ROTATION)
    await run.open()
    await run.sink.finish()
    await run.sink.close()
    assert [path.name for path in closed_in(tmp_path)] == [f"s-{before + 1:08}.jsonl"]


async def test_an_output_without_state_beside_it_is_refused_and_says_so(tmp_path: Path) -> None:
    (tmp_path / "s.jsonl").write_bytes(b"{}\n")
    run = Run(tmp_path, Checkpoints(), "jsonl", "none")
    with pytest.raises(HeldError, match="already holds 3 bytes, an output without state beside it; move it away, or"):
        await run.open()
    assert run.checkpoints.mark is None


async def test_a_kill_while_an_old_output_is_replaced_is_made_good(tmp_path: Path) -> None:
    await stored(tmp_path, 10, rotate=ROTATION)
    folder, again = tmp_path / "out", tmp_path / "again"
    folder.mkdir()
    for path in [*closed_in(tmp_path), tmp_path / "s.jsonl.open"]:
        shutil.move(path, folder)
    checkpoints = Checkpoints()
    with SimulatedDisk(folder) as disk:
        checkpoints.disk = disk
        run = Run(folder, checkpoints, "jsonl", "none", rotate=ROTATION, if_exists="replace")
        await run.open()
        await run.write(50)
        await run.checkpoint()
        await run.sink.close()
    for crash in disk.crashes():
        crash.lay_out(again)
        known = Checkpoints()
        known.mark, known.acked = crash.note or (None, ())
        run = Run(again, known, "jsonl", "none", rotate=ROTATION, if_exists="replace")
        await run.open()
        await run.sink.close()
        assert payloads_in(again, "jsonl") == list(crash.note[1] if crash.note else ())


async def test_a_sync_does_not_wait_for_a_commit(tmp_path: Path) -> None:
    """A commit waits for the sync that is under way, so a sync that waited for a commit would wait for ever."""
    checkpoints = Checkpoints()
    run = Run(tmp_path, checkpoints, "jsonl", "none", rotate=ROTATION)
    await run.open()
    await run.write(1)
    lengths = []

    async def commit(mark: OutputMark) -> None:
        lengths.append(await run.sink.sync())

    run.sink.restore(None, commit)
    await run.sink.finish()
    await run.sink.close()
    assert lengths == [(tmp_path / "s-00000001.jsonl").stat().st_size]


async def test_a_segment_whose_name_is_taken_for_now_gets_it_later(tmp_path: Path) -> None:
    checkpoints = Checkpoints()
    run = Run(tmp_path, checkpoints, "jsonl", "none", rotate=ROTATION)
    await run.open()
    await run.write(0)
    taken = tmp_path / "s-00000001.jsonl"
    taken.mkdir()
    with pytest.raises(SinkError, match="File exists"):
        await run.sink.finish()
    assert run.sink.mark() == checkpoints.mark
    taken.rmdir()
    await run.write(1)
    await run.sink.finish()
    await run.sink.close()
    assert payloads_in(tmp_path, "jsonl") == [0, 1]
    assert taken.is_file()


async def test_what_fails_of_a_disk_is_an_outage_and_a_failed_fsync_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = FileSink("/dev/full", if_exists="append").build(Site())
    await full.open(b"")
    with pytest.raises(SinkOutage, match="No space left on device"):
        await full.write(b"x")
    await full.close()
    run = Run(tmp_path, Checkpoints(), "jsonl", "none", rotate=ROTATION)
    await run.open()
    await run.write(0)

    def fail(*args: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", fail)
        with pytest.raises(SinkOutage, match="Input/output error"):
            await run.sink.finish()
    await run.sink.finish()
    assert payloads_in(tmp_path, "jsonl") == [0]
    await run.write(1)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(SinkError, match="may be lost") as lost:
            await run.sink.finish()
    assert not isinstance(lost.value, SinkOutage)
    with pytest.raises(SinkError, match="may be lost"):
        await run.sink.finish()
    await run.sink.close()


@pytest.mark.parametrize("rotation", [None, Rotation(max_bytes=8)])
async def test_dead_letters_are_taken_back_too_at_every_step(tmp_path: Path, rotation: Rotation | None) -> None:
    folder, again = tmp_path / "out", tmp_path / "again"
    folder.mkdir()
    checkpoints, written = Checkpoints(), 0
    with SimulatedDisk(folder) as disk:
        checkpoints.disk = disk

        async def commit(mark: OutputMark) -> None:
            checkpoints.store(mark, range(written))

        file = DeadLetterFile(folder / "dead.jsonl", rotation)
        file.restore(None, commit)
        await file.open()
        assert list(folder.iterdir()) == []
        for number in range(6):
            await file.write(b"%d..\n" % number)
            written += 1
            if number % 2:
                reached = file.mark()
                await file.sync()
                checkpoints.store(reached, range(written))
        await file.close()
    for crash in disk.crashes():
        crash.lay_out(again)
        mark, acked = crash.note or (None, ())
        file = DeadLetterFile(again / "dead.jsonl", rotation)
        file.restore(mark, no_commit)
        await file.open()
        await file.write(b"9..\n")
        await file.finish()
        await file.close()
        lines = b"".join(path.read_bytes() for path in sorted(again.iterdir())).splitlines()
        assert lines == [b"%d.." % number for number in [*acked, 9]]


async def no_commit(mark: OutputMark) -> None:
    pass
