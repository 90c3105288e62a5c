"""Rotation by size and age, and compression: every record in exactly one file, whole, whatever happens when."""

import os
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import anyio
import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streambatch.codecs.containers import Compression
from streambatch.codecs.formats import OutputFormat
from streambatch.connectors.files.sink import FileSink
from streambatch.connectors.files.writer import FileWriter
from streambatch.core.clock import Clock, SystemClock
from streambatch.core.errors import ConfigError, HeldError, SinkError
from streambatch.core.parts import Site
from streambatch.core.types import FloatArray
from streambatch.storage.segments import Rotation
from tests.connectors.files.written import FORMATS, closed_in, encoder, payload_of, read, rows_in
from tests.moved_clock import MovedClock
from tests.storage.test_files import file_size_limit

pytestmark = pytest.mark.anyio
Step = tuple[Literal["write"], int] | tuple[Literal["wait"], float] | tuple[Literal["sync", "close_due"], None]
EACH = pytest.mark.parametrize(("format", "compression"), FORMATS)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def sink_in(
    folder: Path, format: OutputFormat, compression: Compression = "none", clock: Clock | None = None, **options: Any
) -> FileWriter:
    sink = FileSink(str(folder / f"s.{format}"), format=format, compression=compression, **options)
    return sink.build(Site(clock=clock or SystemClock()))


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


steps = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.integers(1, 40)),
        st.tuples(st.just("wait"), st.sampled_from([0.5, 10.0])),
        st.tuples(st.sampled_from(["sync", "close_due"]), st.none()),
    ),
    max_size=12,
)


@EACH
@settings(max_examples=15)
@given(steps=steps, max_bytes=st.sampled_from([1, 600, 3000]), is_graceful=st.booleans())
def test_every_record_is_in_one_segment_and_durable_ones_can_be_read(
    format: OutputFormat, compression: Compression, steps: Sequence[Step], max_bytes: int, is_graceful: bool
) -> None:
    async def run(folder: Path) -> None:
        clock = MovedClock()
        sink = sink_in(folder, format, compression, clock, rotate=Rotation(max_bytes=max_bytes, max_age=10.0))
        encode = encoder(format)
        await sink.open(encode.header())
        written = 0
        counts = [0]
        for what, value in steps:
            if what == "write":
                await sink.write(payload_of(encode, written, int(value or 0)))
                written += int(value or 0)
                counts.append(written)
            elif what == "wait":
                clock.now += value or 0.0
            elif what == "sync":
                await sink.sync()
            else:
                await sink.close_due()
            check_durable(folder, format, counts[sink.durable_writes])
        if is_graceful:
            await sink.finish()
            assert sink.durable_writes == len(counts) - 1
        durable = counts[sink.durable_writes]
        await sink.close()
        check_durable(folder, format, durable)
        if is_graceful:
            rows = rows_in(closed_in(folder), format)
            assert [row for row, _ in rows] == list(range(written))

    with TemporaryDirectory() as folder:
        anyio.run(run, Path(folder))


def check_durable(folder: Path, format: OutputFormat, count: int) -> None:
    """Make sure that the first `count` records can be read: of Parquet from closed segments alone."""
    paths = closed_in(folder)
    if format != "parquet":
        paths += [path for path in folder.iterdir() if path.name.endswith(".open")]
    rows = rows_in(paths, format)
    assert [row for row, _ in rows] == list(range(len(rows)))
    assert len(rows) >= count


@EACH
async def test_a_quiet_segment_is_closed_when_it_is_due(
    tmp_path: Path, format: OutputFormat, compression: Compression
) -> None:
    clock, encode = MovedClock(), encoder(format)
    sink = sink_in(tmp_path, format, compression, clock, rotate=Rotation(max_age=60))
    await sink.open(encode.header())
    await sink.write(payload_of(encode, 0, 3))
    clock.now += 59
    await sink.close_due()
    await sink.sync()
    assert names(tmp_path) == [f"s.{format}.open"]
    assert sink.durable_writes == (0 if format == "parquet" else 1)
    clock.now += 1
    await sink.sync()
    assert names(tmp_path) == [f"s.{format}.open"]
    await sink.close_due()
    assert names(tmp_path) == [f"s-00000001.{format}", f"s.{format}.open"]
    assert sink.durable_writes == 1
    await sink.finish()
    await sink.close()
    assert names(tmp_path) == [f"s-00000001.{format}"]


@EACH
async def test_a_full_disk_tears_nothing_and_claims_nothing(
    tmp_path: Path, format: OutputFormat, compression: Compression
) -> None:
    sink, encode = sink_in(tmp_path, format, compression, rotate=Rotation(max_bytes=20_000)), encoder(format)
    await sink.open(encode.header())
    written, counts, failures = 0, [0], 0
    with file_size_limit(8_000):
        while not failures:
            try:
                await sink.write(payload_of(encode, written, 200))
            except SinkError:
                failures += 1
            else:
                written += 200
                counts.append(written)
        durable = sink.durable_writes
        if format == "parquet":
            with pytest.raises(SinkError, match="too large"):
                await sink.finish()
            assert sink.durable_writes == durable == 0
        check_durable(tmp_path, format, counts[durable])
    await sink.write(payload_of(encode, written, 200))  # once there is room again
    await sink.finish()
    await sink.close()
    assert [row for row, _ in rows_in(closed_in(tmp_path), format)] == list(range(written + 200))


async def test_whoever_follows_closed_segments_reads_each_record_once(tmp_path: Path) -> None:
    sink, encode = sink_in(tmp_path, "jsonl", rotate=Rotation(max_bytes=2_000)), encoder("jsonl")
    seen: dict[str, int] = {}
    lines: list[int] = []
    done = threading.Event()

    def follow() -> None:
        is_last = False
        while not is_last:
            is_last = done.is_set()
            for path in sorted(tmp_path.glob("s-*.jsonl")):
                if path.name not in seen:
                    seen[path.name] = path.stat().st_size
                    lines.extend(row["id"] for row in read(path, "jsonl"))

    reader = threading.Thread(target=follow)
    reader.start()
    try:
        await sink.open(b"")
        for at in range(300):
            await sink.write(payload_of(encode, at * 10, 10))
            if at % 7 == 0:
                await sink.sync()
        await sink.finish()
        await sink.close()
    finally:
        done.set()
        reader.join()
    assert lines == list(range(3000))
    assert len(seen) > 30
    assert all((tmp_path / name).stat().st_size == size for name, size in seen.items())


@pytest.mark.parametrize("tool", ["gzip", "zstd"])
@pytest.mark.parametrize("format", ["jsonl", "csv"])
async def test_the_usual_tools_unpack_it_and_it_can_be_cut_where_a_write_ended(
    tmp_path: Path, tool: Compression, format: OutputFormat
) -> None:
    sink, encode = sink_in(tmp_path, format, tool), encoder(format)
    await sink.open(encode.header())
    lengths = []
    for at in range(4):
        await sink.write(payload_of(encode, at * 100, 100))
        lengths.append(await sink.sync())
    await sink.finish()
    await sink.close()
    path = tmp_path / f"s.{format}"
    for at, length in enumerate(lengths):
        cut = subprocess.run([tool, "-dc"], input=path.read_bytes()[:length], capture_output=True, check=True).stdout
        assert len(cut.splitlines()) == (at + 1) * 100 + (format == "csv")


async def test_an_arrow_stream_can_be_read_while_it_grows_and_is_ended_when_closed(tmp_path: Path) -> None:
    sink, encode = sink_in(tmp_path, "arrow"), encoder("arrow")
    await sink.open(b"")
    for at in range(3):
        await sink.write(payload_of(encode, at, 1) + payload_of(encode, 90 + at, 1))
        assert len(read(tmp_path / "s.arrow", "arrow")) == 2 * (at + 1)
    await sink.finish()
    await sink.close()
    assert (tmp_path / "s.arrow").read_bytes().endswith(b"\xff\xff\xff\xff\0\0\0\0")


async def test_ids_that_become_text_begin_one_segment_and_not_more(tmp_path: Path) -> None:
    sink, encode = sink_in(tmp_path, "arrow", rotate=Rotation(max_age=60)), encoder("arrow")
    await sink.open(b"")
    for ids in (["1", "b"], [3], ["d"], [5]):
        await sink.write(payload_of(encode, 1, 1))
        await sink.write(encode.encode(ids, payload_scores(len(ids)), []))
    await sink.finish()
    await sink.close()
    first, second = (read(path, "arrow") for path in closed_in(tmp_path))
    assert [row["id"] for row in first] == [1]
    assert [row["id"] for row in second] == ["1", "b", "1", "3", "1", "d", "1", "5"]


async def test_columns_that_do_not_fit_one_file_are_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    sink, encode = sink_in(tmp_path, "arrow"), encoder("arrow")
    await sink.open(b"")
    await sink.write(payload_of(encode, 1, 1))
    with pytest.raises(SinkError, match=r"id: int64, score: float, and now id: string, .* set rotate"):
        await sink.write(encode.encode(["a"], payload_scores(1), []))
    await sink.write(payload_of(encode, 2, 1))
    await sink.close()
    assert [row["id"] for row in read(tmp_path / "s.arrow", "arrow")] == [1, 2]


async def test_parquet_has_row_groups_of_bounded_size(tmp_path: Path) -> None:
    sink, encode = sink_in(tmp_path, "parquet"), encoder("parquet")
    await sink.open(b"")
    for at in range(5):
        await sink.write(payload_of(encode, at * 60_000, 60_000))
    assert (tmp_path / "s.parquet.open").stat().st_size > 100_000
    await sink.finish()
    await sink.close()
    (path,) = closed_in(tmp_path)
    with pq.ParquetFile(path) as file:
        groups = [file.metadata.row_group(at).num_rows for at in range(file.num_row_groups)]
    assert sum(groups) == 300_000
    assert max(groups) <= 128 << 10
    assert len(groups) <= 4


@pytest.mark.parametrize("left", ["s-00000003.jsonl", "s.jsonl.open"])
async def test_an_output_that_is_there_stops_the_run_untouched(tmp_path: Path, left: str) -> None:
    sink = FileSink(str(tmp_path / "s.jsonl"), rotate=Rotation(max_age=1))
    assert sink.existing() == []
    (tmp_path / left).write_bytes(b"old\n")
    assert sink.existing() == [tmp_path / left]
    with pytest.raises(HeldError, match=f"{left} is already there; move it away"):
        await sink_in(tmp_path, "jsonl", rotate=Rotation(max_age=1)).open(b"")
    assert names(tmp_path) == [left]
    assert (tmp_path / left).read_bytes() == b"old\n"


async def test_append_goes_on_with_numbers_and_in_the_open_segment(tmp_path: Path) -> None:
    (tmp_path / "s-00000003.csv").write_bytes(b"id,score\n1,2\n")
    (tmp_path / "s.csv.open").write_bytes(b"id,score\n3,4\n5,6")
    sink, encode = sink_in(tmp_path, "csv", if_exists="append", rotate=Rotation(max_bytes=24)), encoder("csv")
    await sink.open(encode.header())
    await sink.write(b"7,8\n")
    await sink.write(b"9,0\n")
    await sink.finish()
    await sink.close()
    assert names(tmp_path) == ["s-00000003.csv", "s-00000004.csv", "s-00000005.csv"]
    assert (tmp_path / "s-00000004.csv").read_bytes() == b"id,score\n3,4\n5,6\n7,8\n"
    assert (tmp_path / "s-00000005.csv").read_bytes() == b"id,score\n9,0\n"


async def test_replace_removes_the_segments_and_nothing_else(tmp_path: Path) -> None:
    for name in ("s-00000003.csv", "s.csv.open", "s-3.csv", "other.csv"):
        (tmp_path / name).write_bytes(b"old\n")
    sink = sink_in(tmp_path, "csv", if_exists="replace", rotate=Rotation(max_age=1))
    await sink.open(b"id,score\n")
    await sink.write(b"7,8\n")
    await sink.finish()
    await sink.close()
    assert names(tmp_path) == ["other.csv", "s-00000001.csv", "s-3.csv"]
    assert (tmp_path / "s-00000001.csv").read_bytes() == b"id,score\n7,8\n"


@pytest.mark.parametrize(("format", "compression"), [("jsonl", "gzip"), ("arrow", "none"), ("parquet", "none")])
async def test_there_is_no_going_on_in_what_may_be_torn(
    tmp_path: Path, format: OutputFormat, compression: Compression
) -> None:
    left = tmp_path / f"s.{format}.open"
    left.write_bytes(b"torn")
    with pytest.raises(HeldError, match="left from a run that was cut off"):
        await sink_in(tmp_path, format, compression, if_exists="append", rotate=Rotation(max_age=1)).open(b"")
    assert left.read_bytes() == b"torn"
    left.unlink()
    sink = sink_in(tmp_path, format, compression, if_exists="append", rotate=Rotation(max_age=1))
    await sink.open(b"")
    await sink.close()
    assert names(tmp_path) == []


def test_impossible_options_are_refused() -> None:
    with pytest.raises(ConfigError, match="compression: found 'gzip' with the format arrow"):
        FileSink("s", format="arrow", compression="gzip")
    with pytest.raises(ConfigError, match="if_exists: found 'append' to one file that is compressed or arrow"):
        FileSink("s", if_exists="append", compression="zstd")
    assert FileSink("s", format="parquet").rotation == Rotation(max_bytes=256 << 20, max_age=60.0)
    assert FileSink("s", format="parquet", rotate=Rotation(max_bytes=9)).rotation == Rotation(max_bytes=9, max_age=60.0)


def payload_scores(count: int) -> FloatArray:
    return np.zeros(count, np.float32)
