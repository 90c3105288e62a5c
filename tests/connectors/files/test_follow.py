"""Files followed while somebody appends, rotates, cuts back, deletes and recreates them: real files, real writers."""

import os
import sys
from pathlib import Path

import anyio
import pytest

from streambatch.connectors.files import follow, searching
from streambatch.connectors.files.source import FileSource
from streambatch.core.errors import SourceError
from streambatch.core.parts import Site
from tests.connectors.files.filing import FileIntake, following

MIB = 1 << 20
WRITER = Path(__file__).parent / "numbers_writer.py"
BOTH_LOOPS = pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(autouse=True)
def _look_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow, "LOOK_SECONDS", 0.01)


def follow_all(folder: Path, pattern: str = "*", **options: object) -> FileSource:
    return FileSource(f"{folder}/{pattern}", follow=True, **{"rotate_wait": 0.2, **options})  # type: ignore[arg-type]


def append(path: Path, raw: bytes) -> None:
    with path.open("ab") as file:
        file.write(raw)


def events(intake: FileIntake) -> list[tuple[str, str]]:
    return [(Path(path).name, event) for path, event in intake.files.events]


def partitions(intake: FileIntake) -> dict[str, list[bytes]]:
    return {Path(name).name: [r.strip() for r in records] for name, records in intake.by_partition().items()}


@BOTH_LOOPS
async def test_what_is_appended_is_read_once_its_line_is_whole(tmp_path: Path) -> None:
    path, intake = tmp_path / "a", FileIntake()
    path.write_bytes(b"1\n2\nha")
    async with following(follow_all(tmp_path), intake):
        await intake.holds(2)
        append(path, b"lf")
        append(tmp_path / "b", b"x\n")
        await intake.holds(3)
        assert partitions(intake)["a"] == [b"1", b"2"]
        append(path, b"\n3\r\n")
        await intake.holds(5)
    assert partitions(intake) == {"a": [b"1", b"2", b"half", b"3"], "b": [b"x"]}
    assert intake.positions[str(path)] == path.stat().st_size
    assert events(intake) == [("a", "opened"), ("b", "opened")]


async def test_a_glob_that_matches_nothing_yet_is_waited_for(tmp_path: Path) -> None:
    intake = FileIntake()
    async with following(follow_all(tmp_path, "in/*.jsonl"), intake):
        await anyio.wait_all_tasks_blocked()
        (tmp_path / "in").mkdir()
        append(tmp_path / "in" / "a.jsonl", b"1\n")
        append(tmp_path / "in" / "a.txt", b"no\n")
        await intake.holds(1)
    assert intake.lines() == [b"1"]


async def test_what_is_there_at_first_is_read_oldest_first_each_to_its_end(tmp_path: Path) -> None:
    lines = {name: [b"%s%d" % (name.encode(), i) for i in range(200_000)] for name in "cab"}
    for age, (name, each) in enumerate(lines.items()):
        (tmp_path / name).write_bytes(b"\n".join(each) + b"\n")
        os.utime(tmp_path / name, (1000 + age // 2, 1000 + age // 2))
    intake = FileIntake()
    async with following(follow_all(tmp_path), intake):
        await intake.holds(600_000)
    assert intake.lines() == lines["a"] + lines["c"] + lines["b"]


async def test_growing_files_take_turns(tmp_path: Path) -> None:
    intake = FileIntake()
    async with following(follow_all(tmp_path), intake):
        append(tmp_path / "a", b"first\n")
        await intake.holds(1)
        append(tmp_path / "a", b"a\n" * 3_000_000)
        append(tmp_path / "b", b"b\n")
        await intake.holds(3_000_002)
    is_b = [chunk.partition.name.endswith("b") for chunk in intake.chunks]
    assert is_b.index(True) < len(is_b) - 1


@pytest.mark.parametrize("pattern", ["log*", "log"])
@pytest.mark.parametrize("deepest", [0, 50])
async def test_a_writer_that_rotates_fast(tmp_path: Path, pattern: str, deepest: int) -> None:
    """Names that match keep everything, however fast; a name that doesn't is kept by the open handle, if seen once."""
    lines, per_file = (200_000, 20_000) if pattern == "log*" else (100_000, 100_000)
    intake = FileIntake()
    command = [sys.executable, str(WRITER), str(tmp_path / "log"), str(lines), str(per_file)]
    async with following(follow_all(tmp_path, pattern), intake):
        await anyio.run_process([*command, str(deepest)] if deepest else command, stdout=None, stderr=None)
        await intake.holds(lines)
    found = sorted(intake.lines(), key=lambda line: int(line[6:-1]))
    assert found == [b'{"id":%d}' % i for i in range(lines)]
    for records in partitions(intake).values():
        numbers = [int(record[6:-1]) for record in records]
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
        assert len(numbers) == per_file
    assert intake.faults() == []
    assert intake.files.count("truncated") == 0


@BOTH_LOOPS
async def test_a_renamed_file_keeps_its_partition_and_the_new_one_gets_another(tmp_path: Path) -> None:
    path, intake = tmp_path / "log", FileIntake()
    path.write_bytes(b"1\n")
    async with following(follow_all(tmp_path), intake):
        await intake.holds(1)
        with path.open("ab", buffering=0) as old:
            path.rename(tmp_path / "log.1")
            old.write(b"2\n")
            path.write_bytes(b"3\n")
            await intake.holds(3)
            old.write(b"4")
            await intake.holds(4)
            await intake.files.saw("completed")
        (tmp_path / "log.1").rename(tmp_path / "log.2")
        path.rename(tmp_path / "log.1")
        path.write_bytes(b"5\n")
        await intake.holds(5)
        await intake.files.saw("completed", 2)
    assert partitions(intake) == {"log": [b"1", b"2", b"4"], "log#2": [b"3"], "log#3": [b"5"]}
    assert [event for event in events(intake) if event[1] == "rotated"] == [("log.1", "rotated")] * 2


async def test_a_file_renamed_out_of_the_glob_is_read_to_its_end(tmp_path: Path) -> None:
    path, intake = tmp_path / "log", FileIntake()
    path.write_bytes(b"1\n")
    async with following(follow_all(tmp_path, "log", rotate_wait=0.5), intake):
        await intake.holds(1)
        with path.open("ab", buffering=0) as old:
            path.rename(tmp_path / "old")
            path.write_bytes(b"3\n")
            await intake.holds(2)
            old.write(b"2\nunterminated")
            await intake.holds(4)
            await intake.files.saw("completed")
    assert ("log", "rotated") in events(intake)
    assert partitions(intake) == {"log": [b"1", b"2", b"unterminated"], "log#2": [b"3"]}


async def test_a_renamed_file_that_grows_after_all_is_read_on(tmp_path: Path) -> None:
    path, intake = tmp_path / "log", FileIntake()
    path.write_bytes(b"x,y\n1,2\n3")
    async with following(follow_all(tmp_path, format="csv"), intake):
        await intake.holds(1)
        path.rename(tmp_path / "log.1")
        await intake.files.saw("completed")
        append(tmp_path / "log.1", b"\n5,6\n7,8")
        await intake.files.saw("completed", 2)
    assert partitions(intake) == {"log": [b"1,2", b"3", b"5,6", b"7,8"]}
    assert {chunk.columns for chunk in intake.chunks} == {("x", "y")}


@BOTH_LOOPS
async def test_cut_back_and_written_anew(tmp_path: Path) -> None:
    path, intake = tmp_path / "log", FileIntake()
    path.write_bytes(b"1\n2\nhalf")
    async with following(follow_all(tmp_path), intake):
        await intake.holds(2)
        path.write_bytes(b"3\n")
        await intake.files.saw("truncated")
        append(path, b"4\n")
        await intake.holds(5)
    assert partitions(intake) == {"log": [b"1", b"2", b"half"], "log#2": [b"3", b"4"]}
    assert intake.faults() == [("cut_off", b"half")]


async def test_cut_back_and_grown_past_what_was_read_between_two_looks(tmp_path: Path) -> None:
    path, intake = tmp_path / "log", FileIntake()
    path.write_bytes(b"1\n2\n")
    async with following(follow_all(tmp_path), intake):
        await intake.holds(2)
        path.write_bytes(b"3\n4\n5\n6\n")
        await intake.holds(6)
    assert partitions(intake) == {"log": [b"1", b"2"], "log#2": [b"3", b"4", b"5", b"6"]}
    assert intake.files.count("truncated") == 1


async def test_a_deleted_file_is_read_to_its_end_then_let_go(tmp_path: Path) -> None:
    path, intake = tmp_path / "log", FileIntake()
    path.write_bytes(b"1\n")
    async with following(follow_all(tmp_path), intake):
        await intake.holds(1)
        with path.open("ab", buffering=0) as old:
            path.unlink()
            old.write(b"2\n3")
            path.write_bytes(b"4\n")
            await intake.holds(4)
            await intake.files.saw("deleted")
        path.unlink()
        await intake.files.saw("deleted", 2)
        assert open_files_below(tmp_path) == []
        path.write_bytes(b"1\n")
        await intake.holds(5)
    assert partitions(intake) == {"log": [b"1", b"2", b"3"], "log#2": [b"4"], "log#3": [b"1"]}


def open_files_below(folder: Path) -> list[str]:
    links = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
    targets = [os.readlink(link) for link in links if os.path.lexists(link)]
    return [target for target in targets if target.startswith(str(folder))]


async def test_a_file_replaced_by_a_copy_of_itself_goes_on(tmp_path: Path) -> None:
    """So do editors that save beside and rename over, and overlay file systems on the first write."""
    path, intake = tmp_path / "log", FileIntake()
    lines = [b"%d" % i for i in range(3000)]
    path.write_bytes(b"\n".join(lines) + b"\n30")
    async with following(follow_all(tmp_path, "log"), intake):
        await intake.holds(3000)
        (tmp_path / "copy").write_bytes(path.read_bytes() + b"00\n3001\n")
        (tmp_path / "copy").rename(path)
        await intake.holds(3002)
        append(path, b"3002\n")
        await intake.holds(3003)
    assert partitions(intake) == {"log": [*lines, b"3000", b"3001", b"3002"]}


async def test_another_file_in_its_place_is_another_partition(tmp_path: Path) -> None:
    path, intake = tmp_path / "log", FileIntake()
    path.write_bytes(b"1\n")
    async with following(follow_all(tmp_path, "log"), intake):
        await intake.holds(1)
        (tmp_path / "copy").write_bytes(b"1\n2\n")
        (tmp_path / "copy").rename(path)
        await intake.holds(3)
    assert partitions(intake) == {"log": [b"1"], "log#2": [b"1", b"2"]}


async def test_a_name_that_looks_like_a_second_partition_is_kept_apart(tmp_path: Path) -> None:
    intake = FileIntake()
    (tmp_path / "log").write_bytes(b"1\n")
    (tmp_path / "log#2").write_bytes(b"2\n")
    async with following(follow_all(tmp_path), intake):
        await intake.holds(2)
        (tmp_path / "log").unlink()
        (tmp_path / "log").write_bytes(b"3\n")
        await intake.holds(3)
    assert partitions(intake) == {"log": [b"1"], "log#2": [b"2"], "log#3": [b"3"]}


@pytest.mark.parametrize(
    ("format", "before", "after", "found"),
    [
        ("jsonl", b"1\n2\nha", b"lf\n3\n", [b"half", b"3"]),
        ("jsonl", b"1\n2\n", b"3\n", [b"3"]),
        ("jsonl", b"", b"3\n", [b"3"]),
        ("jsonl", b"ha", b"lf\n", [b"half"]),
        ("jsonl", b"x" * (3 * MIB) + b"\nha", b"lf\n", [b"half"]),
        ("csv", b'x,y\n1,"\n2', b'\n"\n3,4\n', [b'1,"\n2\n"', b"3,4"]),
        ("csv", b"x,", b"y\n3,4\n", [b"3,4"]),
        ("length_prefixed", b"\0\0\0\x011\0\0\0", b"\x02223", [b"\0\0\0\x0222"]),
    ],
)
async def test_from_the_end_means_after_the_last_whole_record(
    tmp_path: Path, format: str, before: bytes, after: bytes, found: list[bytes]
) -> None:
    path, intake = tmp_path / "a", FileIntake()
    path.write_bytes(before)
    async with following(follow_all(tmp_path, read_from="end", format=format), intake):
        await intake.files.saw("opened")
        append(path, after)
        append(tmp_path / "later", before + after)
        await intake.holds(len(found))
        await intake.files.saw("opened", 2)
        while str(tmp_path / "later") not in intake.positions:
            await anyio.sleep(0.01)
    assert partitions(intake)["a"] == found
    if format == "csv":
        assert intake.chunks[0].columns == ("x", "y")
    assert intake.positions[str(path)] <= path.stat().st_size


async def test_a_10_mib_line_dies_alone(tmp_path: Path) -> None:
    intake = FileIntake(memory=8 * MIB)
    async with following(follow_all(tmp_path), intake):
        append(tmp_path / "a", b"1\n" + b"x" * (5 * MIB))
        await intake.holds(1)
        append(tmp_path / "a", b"x" * (5 * MIB) + b"\n2\n")
        await intake.holds(3)
    assert intake.lines() == [b"1", b"2"]
    assert [reason for reason, _ in intake.faults()] == ["oversize"]
    assert intake.budget.peak <= 8 * MIB


async def test_a_full_budget_stops_reading(tmp_path: Path) -> None:
    intake = FileIntake(memory=8 * MIB)
    intake.memory.take(8 * MIB)
    append(tmp_path / "a", b"1\n" * MIB)
    async with following(follow_all(tmp_path), intake):
        await intake.files.saw("opened")
        await anyio.sleep(0.05)
        assert intake.count == 0
        intake.memory.give(8 * MIB)
        await intake.holds(MIB)
    assert intake.seen.blocked > 0


async def test_halves_of_large_records_in_many_files_do_not_fill_the_budget(tmp_path: Path) -> None:
    intake = FileIntake(memory=8 * MIB)
    async with following(follow_all(tmp_path), intake):
        for number in range(30):
            append(tmp_path / f"{number:02}", b"first\n" + b"%d" % number + b"x" * 900_000)
        await intake.holds(30)
        append(tmp_path / "other", b"1\n")
        await intake.holds(31)
        assert intake.budget.used <= 2 * MIB
        for number in range(30):
            append(tmp_path / f"{number:02}", b"\n")
        await intake.holds(61)
    assert {len(records[1]) for name, records in partitions(intake).items() if name < "10"} == {900_001}
    assert len(intake.records()) == 61
    assert intake.budget.peak <= 8 * MIB


@BOTH_LOOPS
async def test_a_thousand_files(tmp_path: Path) -> None:
    names = [f"{number:04}" for number in range(1000)]
    for name in names:
        append(tmp_path / name, f"{name}-1\n".encode())
    intake = FileIntake()
    async with following(follow_all(tmp_path), intake):
        await intake.holds(1000)
        for name in names:
            append(tmp_path / name, f"{name}-2\n".encode())
        await intake.holds(2000)
        assert len(open_files_below(tmp_path)) <= follow.HANDLES_MAX
        for name in names[::10]:
            (tmp_path / name).rename(tmp_path / f"{name}.old")
            append(tmp_path / f"{name}.old", f"{name}-3\n".encode())
        await intake.holds(2100)
    assert partitions(intake) == {
        name: [f"{name}-{n}".encode() for n in range(1, 4 if name.endswith("0") else 3)] for name in names
    }


async def test_idle_files_cost_one_thread_call_a_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(300):
        append(tmp_path / str(number), b"1\n")
    calls: list[object] = []
    run_sync = anyio.to_thread.run_sync
    intake = FileIntake()

    async def counting(call: object, *args: object) -> object:
        calls.append(call)
        return await run_sync(call, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(anyio.to_thread, "run_sync", counting)
    async with following(follow_all(tmp_path), intake):
        await intake.holds(300)
        calls.clear()
        while len(calls) < 4:
            await anyio.sleep(0.01)
        assert set(calls[:4]) == {searching.look_at}


async def test_a_directory_in_the_glob_is_passed_over_and_one_named_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    os.mkfifo(tmp_path / "p")
    intake = FileIntake()
    async with following(follow_all(tmp_path), intake):
        append(tmp_path / "a", b"1\n")
        await intake.holds(1)
    with pytest.raises(SourceError, match="is a directory, not a file"), anyio.fail_after(10):
        await follow_all(tmp_path, "d").build(Site()).run(intake)


@BOTH_LOOPS
async def test_a_stop_while_the_inbox_is_full_loses_nothing_that_was_put(tmp_path: Path) -> None:
    lines = [b"%d" % i for i in range(300_000)]
    append(tmp_path / "a", b"\n".join(lines) + b"\n")
    intake = FileIntake()
    intake.stall()
    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(follow_all(tmp_path).build(Site()).run, intake)
            await intake.is_waited_for()
            tasks.cancel_scope.cancel()
            intake.go_on()
    assert 0 < intake.count < len(lines)
    assert intake.lines() == lines[: intake.count]
    assert intake.budget.used == 0
    assert open_files_below(tmp_path) == []
