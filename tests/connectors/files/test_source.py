"""Files read to their end: every record once, in order, whatever they look like; and faults that say where they are."""

import gzip
import os
import socket
from pathlib import Path

import anyio
import pytest

from streambatch.connectors.files.input_file import BLOCK_BYTES
from streambatch.connectors.files.source import FileSource
from streambatch.core.chunks import Chunk
from streambatch.core.errors import ConfigError, SourceError
from streambatch.core.parts import Site
from tests.connectors.files.filing import FileIntake, read_all

MIB = 1 << 20
pytestmark = [pytest.mark.anyio, pytest.mark.parametrize("anyio_backend", ["asyncio"])]
LINES = [b'{"id":%d}' % i for i in range(50_000)]


def text(lines: list[bytes], end: bytes = b"\n") -> bytes:
    return b"".join(line + end for line in lines)


async def test_blocks_are_joined_without_a_seam(tmp_path: Path) -> None:
    lines = [b"%d-" % i + b"x" * (i % 300) for i in range(30_000)]
    path = tmp_path / "a.jsonl"
    path.write_bytes(text(lines))
    assert path.stat().st_size > 3 * BLOCK_BYTES
    intake = await read_all(FileSource(str(path)))
    assert intake.lines() == lines
    assert intake.positions == {str(path): path.stat().st_size}
    assert intake.files.events == [(str(path), "opened"), (str(path), "completed")]


@pytest.mark.parametrize(
    ("raw", "records"),
    [
        (b"", []),
        (b"\n", []),
        (b"1\n", [b"1"]),
        (b"1\n2", [b"1", b"2"]),
        (b"1\r\n2\r\n", [b"1", b"2"]),
        (b"1\n\r\n\n2\n\n", [b"1", b"2"]),
        (b"\xff\xfe\n\x00\n", [b"\xff\xfe", b"\x00"]),
    ],
)
async def test_ugly_ends(tmp_path: Path, raw: bytes, records: list[bytes]) -> None:
    (tmp_path / "a").write_bytes(raw)
    intake = await read_all(FileSource(str(tmp_path / "a")))
    assert intake.lines() == records


async def test_a_10_mib_line_dies_alone(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"1\n" + b"x" * (10 * MIB) + b"\n2\n")
    intake = await read_all(FileSource(str(tmp_path / "a")), FileIntake(memory=8 * MIB))
    assert intake.lines() == [b"1", b"2"]
    assert [(reason, len(kept)) for reason, kept in intake.faults()] == [("oversize", 64 << 10)]
    assert intake.budget.peak <= 8 * MIB


async def test_a_10_mib_line_that_is_allowed(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"1\n" + b"x" * (10 * MIB) + b"\n2\n")
    intake = await read_all(FileSource(str(tmp_path / "a"), max_record_bytes=16 * MIB))
    assert [len(line) for line in intake.lines()] == [1, 10 * MIB, 1]


async def test_files_are_read_by_name_each_its_own_partition(tmp_path: Path) -> None:
    for name in ("c", "a", "b"):
        (tmp_path / f"{name}.jsonl").write_text(f"{name}1\n{name}2")
    (tmp_path / "other.txt").write_text("no\n")
    intake = await read_all(FileSource(f"{tmp_path}/*.jsonl"))
    assert intake.lines() == [b"a1", b"a2", b"b1", b"b2", b"c1", b"c2"]
    assert list(intake.by_partition()) == [f"{tmp_path}/{name}.jsonl" for name in "abc"]


async def test_a_list_of_globs_reads_no_file_twice(tmp_path: Path) -> None:
    (tmp_path / "a1").write_text("1\n")
    (tmp_path / "a2").write_text("2\n")
    os.link(tmp_path / "a2", tmp_path / "a3")
    os.symlink(tmp_path / "a1", tmp_path / "latest")
    intake = await read_all(FileSource([f"{tmp_path}/*2", f"{tmp_path}/latest", f"{tmp_path}/a*"]))
    assert intake.lines() == [b"1", b"2"]


async def test_paths_are_relative_to_where_the_process_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jsonl").write_text("1\n")
    intake = await read_all(FileSource("in/*.jsonl"))
    assert intake.by_partition() == {"in/a.jsonl": [b"1\n"]}


async def test_a_path_may_hold_what_means_something_in_a_glob(tmp_path: Path) -> None:
    (tmp_path / "a[1].jsonl").write_text("1\n")
    intake = await read_all(FileSource(f"{tmp_path}/a[1].jsonl"))
    assert intake.lines() == [b"1"]


async def test_a_name_that_is_no_utf8_makes_a_partition_that_is(tmp_path: Path) -> None:
    with open(os.path.join(os.fsencode(tmp_path), b"a\xff"), "wb") as file:
        file.write(b"1\n")
    intake = await read_all(FileSource(f"{tmp_path}/*"))
    assert list(intake.by_partition()) == [f"{tmp_path}/a\\xff"]


async def test_nothing_that_matches_is_an_error_that_names_the_glob(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1\n")
    with pytest.raises(SourceError, match=rf"source file: no file matches {tmp_path}/\*\.jsonl"):
        await read_all(FileSource([f"{tmp_path}/a", f"{tmp_path}/*.jsonl"]))


async def test_a_glob_passes_over_what_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1\n")
    (tmp_path / "b").mkdir()
    os.mkfifo(tmp_path / "c")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "d"))
    os.symlink(tmp_path / "gone", tmp_path / "e")
    assert (await read_all(FileSource(f"{tmp_path}/*"))).lines() == [b"1"]


@pytest.mark.parametrize("kind", ["a directory", "a pipe"])
async def test_a_path_that_is_no_file_is_an_error(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a"
    os.mkfifo(path) if kind == "a pipe" else path.mkdir()
    with pytest.raises(SourceError, match=f"{path} is {kind}, not a file"):
        await read_all(FileSource(str(path)))


class ActingIntake(FileIntake):
    """Does something once, while the first chunk is put."""

    def __init__(self, act: object) -> None:
        super().__init__()
        self._act = act

    async def put(self, chunk: Chunk) -> None:
        await super().put(chunk)
        if callable(self._act):
            self._act()
            self._act = None


async def test_a_file_that_vanishes_before_its_turn(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1\n")
    (tmp_path / "b").write_text("2\n")
    intake = ActingIntake((tmp_path / "b").unlink)
    with pytest.raises(SourceError, match=f"{tmp_path}/b: No such file"):
        await read_all(FileSource(f"{tmp_path}/*"), intake)
    assert intake.lines() == [b"1"]
    assert intake.budget.used == 0


async def test_a_file_that_turns_into_a_pipe_before_its_turn(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1\n")
    (tmp_path / "b").write_text("2\n")

    def turn() -> None:
        (tmp_path / "b").unlink()
        os.mkfifo(tmp_path / "b")

    with pytest.raises(SourceError, match=f"{tmp_path}/b is a pipe, not a file"):
        await read_all(FileSource(f"{tmp_path}/*"), ActingIntake(turn))


async def test_a_file_deleted_while_read_is_read_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(text(LINES * 3))
    intake = await read_all(FileSource(str(path)), ActingIntake(path.unlink))
    assert intake.lines() == LINES * 3


async def test_a_file_that_shrinks_while_read_ends_at_what_is_there(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(text(LINES * 4))
    intake = await read_all(FileSource(str(path)), ActingIntake(lambda: os.truncate(path, BLOCK_BYTES + 5)))
    assert text(intake.lines()) == path.read_bytes()[: path.read_bytes().rfind(b"\n") + 1]
    assert [reason for reason, _ in intake.faults()] == ["cut_off"]
    assert [event for _, event in intake.files.events] == ["opened", "truncated", "completed"]


async def test_a_stop_keeps_what_was_put_and_closes_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(text(LINES * 4))
    intake = FileIntake()
    intake.stall()
    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(FileSource(str(path)).build(Site()).run, intake)
            await intake.is_waited_for()
            tasks.cancel_scope.cancel()
            intake.go_on()
    assert intake.lines() == (LINES * 4)[: intake.count]
    assert 0 < intake.count < len(LINES) * 4
    assert intake.budget.used == 0


async def test_a_full_budget_stops_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    path.write_bytes(text(LINES * 4))
    intake = FileIntake(memory=8 * MIB)
    intake.memory.take(7 * MIB + 1)
    asked, reserve = anyio.Event(), intake.memory.reserve

    async def reserve_and_tell(size: int) -> None:
        asked.set()
        await reserve(size)

    monkeypatch.setattr(intake.memory, "reserve", reserve_and_tell)
    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(FileSource(str(path)).build(Site()).run, intake)
            await asked.wait()
            await anyio.wait_all_tasks_blocked()
            assert intake.count == 0
            intake.memory.give(7 * MIB + 1)
    assert intake.lines() == LINES * 4


@pytest.mark.parametrize("compression", ["auto", "gzip"])
async def test_gzip_is_known_by_its_content(tmp_path: Path, compression: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(gzip.compress(text(LINES[:300])) + gzip.compress(text(LINES[300:])[:-1]) + bytes(20))
    intake = await read_all(FileSource(str(path), compression=compression))  # type: ignore[arg-type]
    assert intake.lines() == LINES
    assert intake.positions == {str(path): len(text(LINES)) - 1}


async def test_what_is_no_gzip_is_read_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "a.gz").write_bytes(b"1\n")
    (tmp_path / "b.gz").write_bytes(b"\x1f")
    intake = await read_all(FileSource(f"{tmp_path}/*"))
    assert intake.lines() == [b"1", b"\x1f"]


async def test_gzip_is_left_alone_when_told_so(tmp_path: Path) -> None:
    raw = gzip.compress(b"1\n")
    (tmp_path / "a").write_bytes(raw)
    intake = await read_all(FileSource(str(tmp_path / "a"), compression="none"))
    assert b"".join(intake.records()).rstrip(b"\n") == raw.rstrip(b"\n")


async def test_an_empty_file_is_no_broken_gzip(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    assert (await read_all(FileSource(str(tmp_path / "a"), compression="gzip"))).lines() == []


@pytest.mark.slow
async def test_a_gzip_bomb_is_one_dead_record_in_little_memory(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(gzip.compress(b"1\n" + bytes(200 * MIB) + b"\n2\n", 1))
    intake = await read_all(FileSource(str(tmp_path / "a")), FileIntake(memory=8 * MIB))
    assert intake.lines() == [b"1", b"2"]
    assert [reason for reason, _ in intake.faults()] == ["oversize"]
    assert intake.budget.peak <= 4 * MIB


async def test_truncated_gzip_gives_its_whole_records_then_says_where_it_ends(tmp_path: Path) -> None:
    path, raw = tmp_path / "a", gzip.compress(text(LINES))
    path.write_bytes(raw[:-5000])
    intake = FileIntake()
    with pytest.raises(SourceError, match=f"{path}: the gzip data ends too early at compressed byte {len(raw) - 5000}"):
        await read_all(FileSource(str(path)), intake)
    assert intake.lines() == LINES[: intake.count]
    assert intake.count > len(LINES) * 0.9
    assert intake.faults() == []
    assert intake.budget.used == 0


async def test_corrupt_gzip_gives_its_whole_records_then_says_where_it_is_torn(tmp_path: Path) -> None:
    path, raw = tmp_path / "a", bytearray(gzip.compress(text(LINES)))
    raw[-6] ^= 1
    path.write_bytes(raw)
    intake = FileIntake()
    with pytest.raises(SourceError, match=f"{path}: the gzip data is corrupt .* at compressed byte {len(raw) - 5}"):
        await read_all(FileSource(str(path)), intake)
    assert intake.lines() == LINES


async def test_no_gzip_where_gzip_is_said(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"1\n")
    with pytest.raises(SourceError, match="incorrect header check"):
        await read_all(FileSource(str(tmp_path / "a"), compression="gzip"))


async def test_csv_says_its_columns_per_file(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("x,y\n1,2\n")
    (tmp_path / "b.csv").write_text('y,x\r\n"3\n3",4')
    intake = await read_all(FileSource(f"{tmp_path}/*.csv", format="csv"))
    assert [chunk.columns for chunk in intake.chunks] == [("x", "y"), ("y", "x")]
    assert [chunk.count for chunk in intake.chunks] == [1, 1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"path": []}, r"path: found \[\]; allowed: a path or glob"),
        ({"path": ["a", ""]}, r"path: found \['a', ''\]"),
        ({"path": "a", "follow": True, "compression": "gzip"}, "compression: found 'gzip' with follow = true"),
        ({"path": "a", "read_from": "end"}, "read_from: found 'end' with follow = false"),
        ({"path": "a", "compression": "lzo"}, "compression: found 'lzo'; allowed: 'auto', 'none', 'gzip'"),
        ({"path": "a", "max_record_bytes": 0}, "max_record_bytes: found 0; allowed: at least 1"),
        ({"path": "a", "rotate_wait": "-1s"}, "rotate_wait: found '-1s'"),
    ],
)
async def test_impossible_options(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        FileSource(**options)  # type: ignore[arg-type]


async def test_it_ends_by_itself_unless_it_follows() -> None:
    assert FileSource("a").is_finite
    assert not FileSource("a", follow=True).is_finite
