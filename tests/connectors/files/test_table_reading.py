"""Arrow and Parquet files read to their end: every row once, in order, bounded; and faults that say where they are."""

import bz2
import contextlib
import gzip
import io
import lzma
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import anyio
import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
import pytest
import zstandard

from streambatch.codecs.table.chunk import TableChunk
from streambatch.connectors.files import table_file
from streambatch.connectors.files.source import FileSource
from streambatch.connectors.files.table_file import TableFile
from streambatch.core.chunks import Chunk
from streambatch.core.errors import SourceError
from streambatch.core.parts import Site
from tests.connectors.files.filing import FileIntake, read_all

MIB = 1 << 20
pytestmark = [pytest.mark.anyio, pytest.mark.parametrize("anyio_backend", ["asyncio"])]
Format = Literal["arrow", "parquet"]
PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "none": bytes,
    "gzip": gzip.compress,
    "zstd": zstandard.compress,
    "xz": lzma.compress,
    "bz2": lambda data: bz2.compress(data, 1),
}


def table(rows: int) -> Any:
    return pa.table({"id": range(rows), "text": [f"row {i}" for i in range(rows)]})


def stream(table: Any, rows: int | None = None, **options: Any) -> bytes:
    out = io.BytesIO()
    with pa.ipc.new_stream(out, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table, rows)
    return out.getvalue()


def file(table: Any, rows: int | None = None) -> bytes:
    out = io.BytesIO()
    with pa.ipc.new_file(out, table.schema) as writer:
        writer.write_table(table, rows)
    return out.getvalue()


def parquet(table: Any, rows: int | None = None, **options: Any) -> bytes:
    out = io.BytesIO()
    pq.write_table(table, out, row_group_size=rows, **options)
    return out.getvalue()


WRITERS: list[tuple[Format, Callable[..., bytes]]] = [("arrow", stream), ("arrow", file), ("parquet", parquet)]
by_writer = pytest.mark.parametrize(("format", "write"), WRITERS, ids=["stream", "file", "parquet"])


class TableIntake(FileIntake):
    """Keeps rows instead of bytes."""

    def rows(self) -> list[Any]:
        return [value for chunk in self.chunks for value in _data(chunk)["id"].to_pylist()]


def _data(chunk: Chunk) -> Any:
    assert isinstance(chunk, TableChunk)
    return chunk.data()


async def read(path: Path, format: Format, intake: TableIntake | None = None, **options: Any) -> TableIntake:
    intake = intake or TableIntake()
    await read_all(FileSource(str(path), format=format, **options), intake)
    return intake


@by_writer
@pytest.mark.parametrize("packed", PACKERS)
@pytest.mark.parametrize("rows", [1, 1000, None])
async def test_every_row_once_in_order(
    tmp_path: Path, format: Format, write: Callable[..., bytes], packed: str, rows: int | None
) -> None:
    path, count = tmp_path / "in", 300 if rows == 1 else 150_000 if packed in ("none", "zstd") else 20_000
    path.write_bytes(PACKERS[packed](write(table(count), rows)))
    intake = await read(path, format)
    assert intake.rows() == list(range(count))
    assert intake.positions == {str(path): count}
    assert max(chunk.count for chunk in intake.chunks) <= 1 << 16
    assert intake.files.events == [(str(path), "opened"), (str(path), "completed")]


@by_writer
@pytest.mark.parametrize("packed", PACKERS)
async def test_a_table_without_rows(tmp_path: Path, format: Format, write: Callable[..., bytes], packed: str) -> None:
    (tmp_path / "in").write_bytes(PACKERS[packed](write(table(0))))
    assert (await read(tmp_path / "in", format)).rows() == []


@pytest.mark.parametrize("format", ["arrow", "parquet"])
async def test_an_empty_file_has_no_rows(tmp_path: Path, format: Format) -> None:
    (tmp_path / "in").touch()
    assert (await read(tmp_path / "in", format)).rows() == []


async def test_small_batches_are_joined(tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(stream(table(20_000), 10))
    intake = await read(tmp_path / "in", "arrow")
    assert intake.rows() == list(range(20_000))
    assert len(intake.chunks) < 10


async def test_dictionaries_that_change_on_the_way(tmp_path: Path) -> None:
    batches = [pa.record_batch({"id": pa.array([f"{i}", f"{i + 1}"]).dictionary_encode()}) for i in range(50)]
    (tmp_path / "in").write_bytes(stream(pa.Table.from_batches(batches), emit_dictionary_deltas=False))
    intake = await read(tmp_path / "in", "arrow")
    assert intake.rows() == [f"{i + j}" for i in range(50) for j in range(2)]


@pytest.mark.parametrize("inner", ["lz4", "zstd"])
async def test_a_stream_that_is_compressed_inside(tmp_path: Path, inner: str) -> None:
    (tmp_path / "in").write_bytes(stream(table(5000), compression=inner))
    assert (await read(tmp_path / "in", "arrow")).rows() == list(range(5000))


@by_writer
@pytest.mark.parametrize("row", [0, 1, 999, 1000, 2500, 7999, 8000, 9000])
async def test_it_opens_at_any_row(tmp_path: Path, format: Format, write: Callable[..., bytes], row: int) -> None:
    (tmp_path / "in").write_bytes(write(table(8000), 1000))
    file = TableFile(str(tmp_path / "in"), format, "auto", batch_bytes_max=MIB, row=row)
    assert [value for batch in _batches(file) for value in batch["id"].to_pylist()] == list(range(row, 8000))
    file.close()


def _batches(file: TableFile) -> Iterator[Any]:
    while (batch := file.read()) is not None:
        yield batch


@pytest.mark.parametrize("packed", PACKERS)
async def test_a_truncated_stream_gives_what_is_whole_then_says_so(tmp_path: Path, packed: str) -> None:
    path, raw = tmp_path / "in", PACKERS[packed](stream(table(20_000), 500))
    path.write_bytes(raw[: len(raw) * 3 // 4])
    intake = TableIntake()
    with pytest.raises(SourceError, match=f"{path}: .*; the records before it were read"):
        await read(path, "arrow", intake)
    assert 0 < intake.count < 20_000
    assert intake.rows() == list(range(intake.count))
    assert intake.count % 500 == 0
    assert intake.budget.used == 0


@pytest.mark.parametrize(("format", "write"), WRITERS[1:], ids=["file", "parquet"])
@pytest.mark.parametrize("packed", PACKERS)
async def test_what_is_read_from_its_end_must_have_one(
    tmp_path: Path, format: Format, write: Callable[..., bytes], packed: str
) -> None:
    path, raw = tmp_path / "in", PACKERS[packed](write(table(20_000)))
    path.write_bytes(raw[: len(raw) * 3 // 4])
    with pytest.raises(SourceError, match=str(path)):
        await read(path, format)


@by_writer
async def test_any_corrupt_byte_is_an_error_or_nothing_worse(
    tmp_path: Path, format: Format, write: Callable[..., bytes]
) -> None:
    path, raw = tmp_path / "in", write(table(300), 100)
    random = np.random.default_rng(5)
    for at in random.integers(0, len(raw), 150).tolist():
        broken = bytearray(raw)
        broken[at] ^= int(random.integers(1, 256))
        path.write_bytes(broken)
        intake = TableIntake()
        with contextlib.suppress(SourceError):
            await read(path, format, intake)
        assert intake.budget.used == 0


@pytest.mark.parametrize(
    ("content", "format", "message"),
    [
        (parquet(table(1)), "arrow", "it is a Parquet file: format = 'parquet' reads it"),
        (file(table(1)), "parquet", "it is an Arrow file: format = 'arrow' reads it"),
        (stream(table(1)), "parquet", "it is no Parquet file"),
        (b'{"id": 1}\n', "parquet", "it is no Parquet file"),
        (b'{"id": 1}\n', "arrow", "in: "),
        (b"x", "arrow", "in: "),
        (gzip.compress(b"", mtime=0), "arrow", "in: "),
    ],
)
async def test_files_of_other_formats(tmp_path: Path, content: bytes, format: Format, message: str) -> None:
    (tmp_path / "in").write_bytes(content)
    with pytest.raises(SourceError, match=message):
        await read(tmp_path / "in", format)


async def test_a_pipe_and_a_folder_are_no_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(SourceError, match="is a pipe"):
        await read(tmp_path / "pipe", "arrow")
    with pytest.raises(SourceError, match="no file matches"):
        await read(tmp_path / "none", "arrow")


async def test_a_batch_that_memory_has_no_room_for_is_refused(tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(stream(pa.table({"id": range(4 * MIB)}), 4 * MIB))
    with pytest.raises(
        SourceError, match=r"a record batch has 32 MiB, more than limits.memory allows for one \(8 MiB\)"
    ):
        await read(tmp_path / "in", "arrow", TableIntake(memory=8 * MIB))


async def test_a_length_that_is_a_lie_costs_no_memory(tmp_path: Path) -> None:
    raw = bytearray(stream(pa.table({"id": range(10)})))
    at = raw.index((80).to_bytes(8, "little"))
    raw[at : at + 8] = (1 << 45).to_bytes(8, "little")
    (tmp_path / "in").write_bytes(raw)
    with pytest.raises(SourceError, match="in: "):
        await read(tmp_path / "in", "arrow")


@pytest.mark.parametrize(("format", "write"), WRITERS[1:], ids=["file", "parquet"])
async def test_a_bomb_is_not_unpacked_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: Format, write: Callable[..., bytes]
) -> None:
    monkeypatch.setattr(table_file, "UNPACKED_BYTES", MIB)
    (tmp_path / "in").write_bytes(gzip.compress(write(table(0))[:8] + bytes(200 * MIB), 1))
    with pytest.raises(SourceError, match=r"in: it unpacks to more than .*MiB"):
        await read(tmp_path / "in", format)


async def test_an_unpacked_file_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = tmp_path / "spool"
    spool.mkdir()
    monkeypatch.setenv("TMPDIR", str(spool))
    (tmp_path / "in").write_bytes(gzip.compress(parquet(table(1000))))
    handles = set(os.listdir("/proc/self/fd"))
    assert (await read(tmp_path / "in", "parquet")).rows() == list(range(1000))
    assert set(os.listdir("/proc/self/fd")) == handles
    assert os.listdir(spool) == []


@by_writer
async def test_memory_is_accounted_for_while_it_waits(
    tmp_path: Path, format: Format, write: Callable[..., bytes]
) -> None:
    rows = 400_000
    (tmp_path / "in").write_bytes(write(pa.table({"id": range(rows), "x": np.random.default_rng(1).random(rows)})))
    intake = TableIntake(memory=16 * MIB)
    intake.stall()
    with anyio.fail_after(20):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(FileSource(str(tmp_path / "in"), format=format).build(Site()).run, intake)
            await intake.is_waited_for()
            assert intake.budget.used > MIB
            intake.go_on()
    assert intake.rows() == list(range(rows))
    assert intake.budget.peak <= 16 * MIB
    assert intake.budget.used == 0


async def test_cancelled_it_gives_everything_back(tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(stream(pa.table({"id": range(MIB)}), MIB))
    intake = TableIntake()
    intake.stall()
    with anyio.fail_after(20):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(FileSource(str(tmp_path / "in"), format="arrow").build(Site()).run, intake)
            await intake.is_waited_for()
            tasks.cancel_scope.cancel()
            intake.go_on()
    assert intake.budget.used == 0
    assert intake.count < MIB


async def test_invalid_text_is_found_before_it_is_used(tmp_path: Path) -> None:
    text = pa.StringArray.from_buffers(1, pa.py_buffer(np.array([0, 1], np.int32)), pa.py_buffer(b"\xff"))
    (tmp_path / "in").write_bytes(stream(pa.table({"id": text})))
    with pytest.raises(SourceError, match=r"in: .*UTF8"):
        await read(tmp_path / "in", "arrow")
