"""Files that end, and followed ones, read by one run after the other: each goes on where records were acked."""

import bz2
import gzip
import io
import lzma
import os
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import anyio
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streambatch.connectors.files import follow
from streambatch.connectors.files.reader import FileReader
from streambatch.connectors.files.source import FileSource
from streambatch.core.checkpoints import SavedPartition
from streambatch.core.parts import Site
from streambatch.testing.resuming import AckedRecords, Found
from tests.connectors.files.filing import FileIntake, following, read_all

pytestmark = [pytest.mark.anyio, pytest.mark.parametrize("anyio_backend", ["asyncio"])]
PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "none": bytes,
    "gzip": gzip.compress,
    "zstd": zstandard.compress,
    "xz": lzma.compress,
    "bz2": bz2.compress,
}


@pytest.fixture(autouse=True)
def _look_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow, "LOOK_SECONDS", 0.01)


class Runs:
    """Runs of one source, one after the other, as if each process had died."""

    def __init__(self, path: object, **options: Any) -> None:
        self.path, self.options = str(path), options
        self.acked = AckedRecords()

    def source(self) -> FileSource:
        return FileSource(self.path, **self.options)

    def reader(self) -> FileReader:
        reader = self.source().build(Site())
        reader.resume(self.acked.saved())
        return reader

    async def read(self, share: float = 1.0) -> FileIntake:
        """Read to the end; then ack a share of what came."""
        reader, intake = self.reader(), FileIntake()
        await read_all(reader, intake)
        return self.stopped(reader, intake, share)

    async def follow(self, records: int, share: float = 1.0, event: str = "") -> FileIntake:
        """Follow until so many records came, and something happened; then ack a share of them."""
        reader, intake = self.reader(), FileIntake()
        async with following(reader, intake):
            await intake.holds(records)
            if event:
                await intake.files.saw(event)  # type: ignore[arg-type]
            else:
                await anyio.sleep(0.1)
        assert intake.count == records
        return self.stopped(reader, intake, share)

    def stopped(self, reader: FileReader, intake: FileIntake, share: float) -> FileIntake:
        found: Found = {}
        for chunk in intake.chunks:
            each = [(chunk.position_of(at), bytes(chunk.raw(at))) for at in range(chunk.count)]
            found.setdefault(chunk.partition.name, []).extend(each)
        self.acked.stopped(found, reader.notes(), share)
        return intake


def by_name(intake: FileIntake) -> dict[str, list[bytes]]:
    return {Path(name).name: [each.strip() for each in records] for name, records in intake.by_partition().items()}


def moved_devices(saved: Mapping[str, SavedPartition]) -> dict[str, SavedPartition]:
    def moved(each: SavedPartition) -> SavedPartition:
        return SavedPartition(position=each.position, read_to=each.read_to, notes={**each.notes, "device": 99_999})

    return {name: moved(each) for name, each in saved.items()}


def framed(format: str, count: int) -> bytes:
    """Return records of uneven lengths."""
    texts = [b"%d,%s" % (i, b"x" * (i * 37 % 900)) for i in range(count)]
    if format == "length_prefixed":
        return b"".join(len(text).to_bytes(4, "big") + text for text in texts)
    if format == "csv":
        return b'"a",b\n' + b"".join(text + b"\n" for text in texts)
    if format == "jsonl":
        return b"\n".join(texts)
    table, out = pa.table({"a": range(count), "b": [text.decode() for text in texts]}), io.BytesIO()
    if format == "parquet":
        pq.write_table(table, out, row_group_size=400)
    else:
        with (pa.ipc.new_stream if format == "arrow" else pa.ipc.new_file)(out, table.schema) as writer:
            writer.write_table(table, 300)
    return out.getvalue()


@pytest.mark.parametrize("packed", PACKERS)
@pytest.mark.parametrize("format", ["jsonl", "csv", "length_prefixed", "arrow", "arrow file", "parquet"])
async def test_every_format_in_every_compression_goes_on_from_any_record(
    tmp_path: Path, format: str, packed: str
) -> None:
    raw, random_ = framed(format, 3000), random.Random(f"{format} {packed}")
    half = len(raw) // 2
    # Two members: what an append to a compressed file makes.
    packs = PACKERS[packed]
    (tmp_path / "a").write_bytes(packs(raw[:half]) + packs(raw[half:]) if format == "jsonl" else packs(raw))
    whole = await read_all(FileSource(f"{tmp_path}/*", format=format.split()[0]))  # type: ignore[arg-type]
    runs = Runs(f"{tmp_path}/*", format=format.split()[0])
    for share in (0.0, random_.uniform(0, 0.8), random_.uniform(0, 0.8), 1.0):
        intake = await runs.read(share)
        assert {chunk.columns for chunk in intake.chunks} == {chunk.columns for chunk in whole.chunks}
    assert [each for _, each in runs.acked.found[f"{tmp_path}/a"]] == whole.by_partition()[f"{tmp_path}/a"]
    assert (await runs.read()).chunks == []


@pytest.mark.parametrize("packed", ["none", "gzip"])
async def test_a_file_that_was_read_is_not_opened_again_until_it_grows(tmp_path: Path, packed: str) -> None:
    pack, path = PACKERS[packed], tmp_path / "a"
    path.write_bytes(pack(b"1\n2\n\n\n"))
    runs = Runs(path)
    await runs.read()
    assert (await runs.read()).files.events == []
    with path.open("ab") as file:
        file.write(pack(b"3\n"))
    intake = await runs.read()
    assert by_name(intake) == {"a": [b"3"]}
    assert (await runs.read()).files.events == []


async def test_a_renamed_file_keeps_its_partition(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"1\n2\n")
    runs = Runs(tmp_path / "*")
    await runs.read(0.5)
    (tmp_path / "a").rename(tmp_path / "b")
    (tmp_path / "a").write_bytes(b"3\n")
    assert by_name(await runs.read()) == {"a#2": [b"3"], "a": [b"2"]}
    assert (await runs.read()).chunks == []


async def test_a_reboot_gives_devices_other_numbers(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).write_bytes(b"same\n" * 2000)
    runs = Runs(tmp_path / "*")
    await runs.read(0.5)
    source, intake = FileSource(f"{tmp_path}/*").build(Site()), FileIntake()
    source.resume(moved_devices(runs.acked.saved()))
    (tmp_path / "b").rename(tmp_path / "c")
    await read_all(source, intake)
    assert {name: len(records) for name, records in by_name(intake).items()} == {"a": 1000, "b": 1000}


@pytest.mark.parametrize("packed", ["none", "gzip"])
@pytest.mark.parametrize("after", [b"8\n9\n", b"1\n"])
async def test_a_file_that_is_another_or_shorter_is_new(tmp_path: Path, packed: str, after: bytes) -> None:
    path = tmp_path / "a"
    path.write_bytes(PACKERS[packed](b"1\n2\n"))
    runs = Runs(path)
    await runs.read()
    path.write_bytes(PACKERS[packed](after))
    intake = await runs.read()
    assert by_name(intake) == {"a#2": after.split()}
    assert [event for _, event in intake.files.events] == ["truncated", "opened", "completed"]
    assert (await runs.read()).chunks == []
    assert list(runs.acked.saved()) == [f"{path}#2"]


async def test_a_packed_file_that_is_shorter_though_it_begins_alike_is_new(tmp_path: Path) -> None:
    noise = random.Random(1).randbytes(30_000).hex().encode()
    lines = [noise[at : at + 100] for at in range(0, len(noise), 100)]
    path = tmp_path / "a"
    path.write_bytes(b"".join(gzip.compress(line + b"\n", mtime=0) for line in lines))
    runs = Runs(path)
    await runs.read(0.9)
    path.write_bytes(b"".join(gzip.compress(line + b"\n", mtime=0) for line in lines[:300]))
    intake = await runs.read()
    assert by_name(intake) == {"a#2": lines[:300]}
    assert "truncated" in [event for _, event in intake.files.events]


async def test_a_table_with_fewer_rows_than_were_read_is_new(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(framed("arrow", 3000))
    runs = Runs(tmp_path / "a", format="arrow")
    await runs.read(0.9)
    (tmp_path / "a").write_bytes(framed("arrow", 300))
    assert {name: len(each) for name, each in by_name(await runs.read()).items()} == {"a#2": 300}


async def test_a_file_that_vanished_is_forgotten_once_it_was_read(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / name).write_bytes(name.encode() + b"1\n2\n")
    runs = Runs(tmp_path / "*")
    await runs.read(0.5)
    (tmp_path / "a").rename(tmp_path.parent / "kept")
    await runs.read()
    (tmp_path / "b").unlink()
    assert (await runs.read()).chunks == []
    assert [Path(name).name for name in runs.acked.saved()] == ["a", "c"]
    (tmp_path.parent / "kept").rename(tmp_path / "a")
    assert by_name(await runs.read()) == {"a": [b"2"]}


@given(data=st.data())
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_happens_to_files_between_runs(
    anyio_backend: str, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Files grow, get other names and are replaced: every line comes once, in order."""
    folder = tmp_path_factory.mktemp("in")
    packed = data.draw(st.sampled_from(sorted(PACKERS)))
    runs, number = Runs(folder / "*", name="in"), iter(range(1_000_000))
    written: dict[int, list[bytes]] = {}
    names: dict[str, int] = {}
    for _ in range(data.draw(st.integers(1, 6))):
        for _ in range(data.draw(st.integers(1, 4))):
            name, other = data.draw(st.sampled_from("abcd")), data.draw(st.sampled_from("abcd"))
            if name in names and other not in names and data.draw(st.booleans()):
                (folder / name).rename(folder / other)
                names[other] = names.pop(name)
            lines = [
                b"%d " % next(number) + os.urandom(20).hex().encode() for _ in range(data.draw(st.integers(0, 20)))
            ]
            written.setdefault(names.setdefault(name, next(number)), []).extend(lines)
            with (folder / name).open("ab") as file:
                file.write(PACKERS[packed](b"".join(line + b"\n" for line in lines)) if lines else b"")
        anyio.run(runs.read, data.draw(st.floats(0, 1)))
    anyio.run(runs.read)
    found = [[record.strip() for _, record in each] for each in runs.acked.found.values()]
    assert sorted(found) == sorted(lines for lines in written.values() if lines)


# Followed.


async def test_rotated_several_times_while_stopped(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"1\n2\n")
    runs = Runs(tmp_path / "log*", follow=True)
    await runs.follow(2, 0.5)
    for number in (3, 4):
        with log.open("ab") as file:
            file.write(b"%d more\n" % number)
        for old, new in (("log.1", "log.2"), ("log", "log.1")):
            if (tmp_path / old).exists():
                (tmp_path / old).rename(tmp_path / new)
        log.write_bytes(b"new %d\n" % number)
    for age, name in enumerate(("log", "log.1", "log.2")):
        os.utime(tmp_path / name, (1000 - age, 1000 - age))
    intake = await runs.follow(5)
    assert [record.strip() for record in intake.records()] == [b"2", b"3 more", b"new 3", b"4 more", b"new 4"]
    assert by_name(intake) == {"log": [b"2", b"3 more"], "log.1": [b"new 3", b"4 more"], "log#2": [b"new 4"]}
    await runs.follow(0)


async def test_renamed_out_of_the_glob_while_stopped(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(b"1\n2\n")
    runs = Runs(tmp_path / "log", follow=True, rotate_wait=0.1)
    await runs.follow(2)
    with (tmp_path / "log").open("ab") as file:
        file.write(b"3\nlast")
    (tmp_path / "log").rename(tmp_path / "old")
    (tmp_path / "log").write_bytes(b"4\n")
    intake = await runs.follow(3, event="completed")
    assert by_name(intake) == {"log": [b"3", b"last"], "log#2": [b"4"]}
    assert list(runs.acked.saved()) == [f"{tmp_path}/log#2"]


async def test_renamed_out_of_the_glob_while_its_handle_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follow, "HANDLES_MAX", 0)
    (tmp_path / "log").write_bytes(b"1\n")
    intake = FileIntake()
    async with following(FileSource(f"{tmp_path}/log", follow=True, rotate_wait=0.1), intake):
        await intake.holds(1)
        (tmp_path / "log").rename(tmp_path / "old")
        with (tmp_path / "old").open("ab") as file:
            file.write(b"2\n")
        await intake.holds(2)
        await intake.files.saw("completed")
    assert by_name(intake) == {"log": [b"1", b"2"]}


async def test_copied_and_cut_back_while_stopped(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"1\n2\n")
    runs = Runs(tmp_path / "log*", follow=True)
    await runs.follow(2, 0.5)
    (tmp_path / "log.1").write_bytes(log.read_bytes() + b"3\n")
    os.truncate(log, 0)
    with log.open("ab") as file:
        file.write(b"4\n")
    assert by_name(await runs.follow(3)) == {"log": [b"2", b"3"], "log#2": [b"4"]}


async def test_cut_back_while_stopped_is_told(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"1\n2\n")
    runs = Runs(log, follow=True)
    await runs.follow(2, 0.5)
    log.write_bytes(b"3\n")
    intake = await runs.follow(1)
    assert by_name(intake) == {"log#2": [b"3"]}
    assert [event for _, event in intake.files.events] == ["opened", "truncated"]


async def test_a_line_that_is_torn_at_the_stop_comes_whole(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"x,y\n1,2\n3")
    runs = Runs(log, follow=True, format="csv")
    await runs.follow(1)
    with log.open("ab") as file:
        file.write(b",4\n")
    intake = await runs.follow(1)
    assert by_name(intake) == {"log": [b"3,4"]}
    assert intake.chunks[0].columns == ("x", "y")


async def test_from_the_end_counts_once(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old\n")
    runs = Runs(tmp_path / "*", follow=True, read_from="end")
    await runs.follow(0, event="opened")
    with (tmp_path / "a").open("ab") as file:
        file.write(b"1\n")
    (tmp_path / "b").write_bytes(b"2\n")
    assert by_name(await runs.follow(2)) == {"a": [b"1"], "b": [b"2"]}


async def test_a_folder_that_is_elsewhere_for_a_run_loses_nothing(tmp_path: Path) -> None:
    """As one that was not mounted yet."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a").write_bytes(b"1\n")
    runs = Runs(tmp_path / "in" / "*", follow=True)
    await runs.follow(1, 0.0)
    (tmp_path / "in").rename(tmp_path / "away")
    reader, intake = runs.reader(), FileIntake()
    async with following(reader, intake):
        await anyio.sleep(0.2)
        (tmp_path / "away").rename(tmp_path / "in")
        await intake.holds(1)
    runs.stopped(reader, intake, 1.0)
    await runs.follow(0)
