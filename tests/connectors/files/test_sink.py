"""The file sink: what `if_exists` does to an output that is there, headers, and full disks."""

import dataclasses
from pathlib import Path
from typing import Literal

import pytest

from streambatch.connectors.files.sink import FileSink
from streambatch.core.errors import ConfigError, HeldError, SinkError
from streambatch.core.parts import Site

pytestmark = pytest.mark.anyio

HEADER = b"id,score\n"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def run(sink: FileSink, *payloads: bytes, header: bytes = b"") -> int:
    writer = sink.build(Site())
    await writer.open(header)
    try:
        for payload in payloads:
            await writer.write(payload)
        return await writer.sync()
    finally:
        await writer.close()


async def test_scores_are_appended_in_order(tmp_path: Path) -> None:
    path = tmp_path / "out" / "scores.jsonl"
    assert await run(FileSink(str(path)), b'{"id":1}\n', b'{"id":2}\n') == 18
    assert path.read_bytes() == b'{"id":1}\n{"id":2}\n'


async def test_a_run_without_scores_leaves_an_empty_file(tmp_path: Path) -> None:
    assert await run(FileSink(str(tmp_path / "scores.jsonl"))) == 0
    assert (tmp_path / "scores.jsonl").read_bytes() == b""


async def test_a_fresh_csv_starts_with_its_header(tmp_path: Path) -> None:
    path = tmp_path / "scores.csv"
    assert await run(FileSink(str(path), format="csv"), b"1,0.5\n", header=HEADER) == 15
    assert path.read_bytes() == b"id,score\n1,0.5\n"


async def test_an_output_that_is_there_stops_the_run_untouched(tmp_path: Path) -> None:
    path = tmp_path / "scores.jsonl"
    path.write_bytes(b"old")
    with pytest.raises(HeldError) as caught:
        await run(FileSink(str(path), name="scores"), b"new\n")
    assert str(caught.value) == (
        f'sink scores: {path} already holds 3 bytes; move it away, or set if_exists to "append" or "replace"'
    )
    assert path.read_bytes() == b"old"


async def test_an_empty_output_is_a_fresh_one(tmp_path: Path) -> None:
    path = tmp_path / "scores.csv"
    path.touch()
    await run(FileSink(str(path), format="csv"), header=HEADER)
    assert path.read_bytes() == HEADER


async def test_replace_empties_it(tmp_path: Path) -> None:
    path = tmp_path / "scores.csv"
    path.write_bytes(b"old")
    assert await run(FileSink(str(path), format="csv", if_exists="replace"), b"1,2\n", header=HEADER) == 13
    assert path.read_bytes() == HEADER + b"1,2\n"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (HEADER, HEADER),
        (HEADER + b"1,2\n", HEADER + b"1,2\n"),
        (HEADER + b"1,2", HEADER + b"1,2\n"),
        (b"id,score", HEADER),
        (b"\xef\xbb\xbfid,score\r\n1,2\r\n", b"\xef\xbb\xbfid,score\r\n1,2\r\n"),
    ],
)
async def test_append_goes_on_after_a_line_and_writes_no_second_header(
    tmp_path: Path, before: bytes, after: bytes
) -> None:
    path = tmp_path / "scores.csv"
    path.write_bytes(before)
    length = await run(FileSink(str(path), format="csv", if_exists="append"), b"3,4\n", header=HEADER)
    assert path.read_bytes() == after + b"3,4\n"
    assert length == len(after) + 4


async def test_append_to_json_lines_starts_on_a_line_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "scores.jsonl"
    path.write_bytes(b'{"id":1}\n{"id":')
    await run(FileSink(str(path), if_exists="append"), b'{"id":3}\n')
    assert path.read_bytes() == b'{"id":1}\n{"id":\n{"id":3}\n'


@pytest.mark.parametrize("before", [b"id,score,ts\n1,2,3", b"id,scor\n", b"1,2\n", b"\xff\xfe\n"])
async def test_append_to_other_columns_is_refused_untouched(tmp_path: Path, before: bytes) -> None:
    path = tmp_path / "scores.csv"
    path.write_bytes(before)
    with pytest.raises(SinkError, match=r"scores.csv starts with .*, and its columns are now 'id,score'; move it away"):
        await run(FileSink(str(path), format="csv", if_exists="append"), b"3,4\n", header=HEADER)
    assert path.read_bytes() == before


@pytest.mark.parametrize("if_exists", ["error", "append", "replace"])
async def test_a_second_pipeline_on_one_output_is_refused_untouched(
    tmp_path: Path, if_exists: Literal["error", "append", "replace"]
) -> None:
    path = tmp_path / "scores.jsonl"
    first = FileSink(str(path)).build(Site())
    await first.open(b"")
    try:
        await first.write(b"mine\n")
        with pytest.raises(HeldError, match="is being written by this process"):
            await FileSink(str(path), if_exists=if_exists).build(Site()).open(b"")
        assert await first.sync() == 5
    finally:
        await first.close()
    assert path.read_bytes() == b"mine\n"


async def test_a_full_disk_is_a_sink_error() -> None:
    with pytest.raises(SinkError) as caught:
        await run(FileSink("/dev/full", name="scores"), b"x\n")
    assert str(caught.value) == "sink scores: /dev/full: No space left on device"


async def test_a_header_that_can_not_be_written_lets_go_of_the_file() -> None:
    sink = FileSink("/dev/full").build(Site())
    for _ in range(2):
        with pytest.raises(SinkError, match="No space left"):
            await sink.open(HEADER)
    with pytest.raises(SinkError, match="is not open"):
        await sink.write(b"x")


def test_it_takes_its_name_from_the_config(tmp_path: Path) -> None:
    sink = FileSink("scores.csv", format="csv")
    assert sink.name == "file"
    named = dataclasses.replace(sink, name="scores")
    assert (named.name, named.path, named.format) == ("scores", "scores.csv", "csv")


def test_a_format_that_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigError, match="format: found 'xml'; allowed: 'jsonl', 'csv', 'arrow' or 'parquet'"):
        FileSink("out", format="xml")  # type: ignore[arg-type]  # as a config may have it
