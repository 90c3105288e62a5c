"""What the state store makes of files that are not what it stored, and of disks that don't take what it stores.

SQLite has no checksums of its own: a flipped bit must be found all the same, and nothing may be overwritten for it.
"""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from streambatch.core.errors import DamagedStateError, StateError, StateOutage
from streambatch.durability.store import database
from streambatch.durability.store import schema as store_schema
from streambatch.durability.store.database import FILE_NAME
from streambatch.durability.store.store import StateStore
from streambatch.durability.stored import IntendedBatch, RecordRange
from streambatch.version import __version__
from tests.durability.stores import checkpoint, opened, run_start, seen
from tests.programs import lacking, needs, root

MOMENT = 1_700_000_000.0
ASIDE = f"{FILE_NAME}.corrupt-20231114T221320Z"


def fill(folder: Path, checkpoints: int = 40) -> tuple[Any, ...]:
    """Make a state with two runs, one of them with many partitions. Returns all that it says."""
    with opened(folder) as store:
        for run in range(2):
            store.begin_run(run_start(f"r{run}"))
            for at in range(checkpoints):
                name = f"{at if run else 0}.jsonl"
                store.commit(checkpoint(float(at), range(at * 20, at * 20 + 20), name, steps=random.randbytes(50)))
        store.end_run("r1", "stopped", None, 3.0, {}, {"run": "r1"})
        store.intend([IntendedBatch(10_000 + n, (RecordRange("in", "a", n, n + 1, 1),)) for n in range(20)])
        return seen(store)


@pytest.fixture
def filled(tmp_path: Path) -> tuple[Path, tuple[Any, ...]]:
    folder = tmp_path / "filled"
    return folder, fill(folder)


def verdict(folder: Path, content: bytes, expected: tuple[Any, ...]) -> str:
    """Open a state file with this content: it must be what was stored, or raise StateError and stay there."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    path = folder / FILE_NAME
    path.write_bytes(content)
    try:
        with StateStore(folder, lambda: MOMENT) as store:
            store.open()
            assert seen(store) == expected
        return "whole"
    except DamagedStateError as error:
        if error.aside is None:  # found when a run was looked at: what is needed to resume is whole
            return "refused"
        assert not path.exists()
        assert (folder / ASIDE).read_bytes() == content
        return "aside"
    except StateError:
        assert path.read_bytes() == content
        return "refused"


def flipped(content: bytes, at: int, bit: int) -> bytes:
    return content[:at] + bytes([content[at] ^ (1 << bit)]) + content[at + 1 :]


@pytest.mark.slow
def test_flipped_bits_are_found(filled: tuple[Path, tuple[Any, ...]], tmp_path: Path) -> None:
    folder, expected = filled
    content = (folder / FILE_NAME).read_bytes()
    chance = random.Random(1)
    places = [*range(100), *(at + chance.randrange(512) for at in range(0, len(content) - 512, 512))]
    verdicts = [verdict(tmp_path / "flipped", flipped(content, at, chance.randrange(8)), expected) for at in places]
    assert verdicts.count("aside") > len(places) / 4
    assert set(verdicts) == {"whole", "aside", "refused"}


def test_overwritten_regions_are_found(filled: tuple[Path, tuple[Any, ...]], tmp_path: Path) -> None:
    folder, expected = filled
    content = (folder / FILE_NAME).read_bytes()
    chance = random.Random(2)
    for at in range(0, len(content), 4096):
        for junk in (bytes(512), chance.randbytes(512), content[8192 : 8192 + 512]):
            place = at + 512 * chance.randrange(8)
            verdict(tmp_path / "junk", content[:place] + junk + content[place + 512 :], expected)


def test_of_a_large_file_what_is_needed_is_checked(
    filled: tuple[Path, tuple[Any, ...]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "QUICK_CHECK_BYTES_MAX", 0)
    folder, expected = filled
    content = (folder / FILE_NAME).read_bytes()
    assert verdict(tmp_path / "large", content, expected) == "whole"
    chance = random.Random(3)
    places = [chance.randrange(len(content)) for _ in range(40)]
    assert "aside" in [verdict(tmp_path / "large", flipped(content, at, 0), expected) for at in places]


def test_a_file_that_was_cut_is_found(filled: tuple[Path, tuple[Any, ...]], tmp_path: Path) -> None:
    folder, expected = filled
    content = (folder / FILE_NAME).read_bytes()
    for length in [0, 1, 50, 99, 100, 4095, 4096, *range(6000, len(content) - 4096, 9973)]:
        assert verdict(tmp_path / "cut", content[:length], expected) == "aside", length
    for missing in (1, 10, 100, 1000, 4000):
        verdict(tmp_path / "cut", content[:-missing], expected)


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE partitions SET position = position + 1 WHERE name = '3.jsonl'",
        "DELETE FROM partitions WHERE name = '3.jsonl'",
        "UPDATE outputs SET mark = '{}'",
        "UPDATE store SET next_batch = 1",
        "UPDATE progress SET journal_to = journal_to - 1",
        "DELETE FROM runs WHERE number = 1",
        "DELETE FROM intents WHERE batch = 10001",
        "INSERT INTO counts VALUES ('more', '{}', '{}')",
        "DROP TABLE steps",
        "DELETE FROM store",
    ],
)
def test_rows_that_nobody_stored_are_found(filled: tuple[Path, tuple[Any, ...]], tmp_path: Path, change: str) -> None:
    folder, expected = filled
    edit(folder, change)
    assert verdict(tmp_path / "edited", (folder / FILE_NAME).read_bytes(), expected) == "aside"


@pytest.mark.parametrize(
    ("change", "look"),
    [
        ("UPDATE reads SET last = 7 WHERE number = 1", lambda store: store.manifest("r0")),
        ("DELETE FROM reads WHERE number = 2 AND name = '3.jsonl'", lambda store: store.manifest("r1")),
        ("DELETE FROM journal WHERE id = 17", lambda store: list(store.journal("r0"))),
        ("DELETE FROM journal WHERE id > 70", lambda store: list(store.journal("r1"))),
        ("UPDATE journal SET packed = zeroblob(9) WHERE id = 1", lambda store: list(store.journal("r0"))),
        ("UPDATE journal SET at = at + 1 WHERE id = 80", lambda store: list(store.journal("r1"))),
    ],
)
def test_a_run_that_is_damaged_keeps_nobody_from_resuming(
    filled: tuple[Path, tuple[Any, ...]], change: str, look: Callable[[StateStore], object]
) -> None:
    folder, expected = filled
    edit(folder, change)
    with opened(folder) as store:
        assert store.load() == expected[0]
        with pytest.raises(DamagedStateError, match=r"run r\d: .*is not what was stored"):
            look(store)


def edit(folder: Path, change: str) -> None:
    connection = sqlite3.connect(folder / FILE_NAME)
    connection.execute(change)
    connection.commit()
    connection.close()


def test_what_was_put_aside_is_named_and_the_next_start_is_anew(tmp_path: Path) -> None:
    fill(tmp_path, 2)
    content = (tmp_path / FILE_NAME).read_bytes()
    for number in ("", "-2"):
        (tmp_path / FILE_NAME).write_bytes(content[:5000])
        with pytest.raises(DamagedStateError, match=r"damaged: .* put aside as .*run again") as raised:
            StateStore(tmp_path, lambda: MOMENT).open()
        assert raised.value.aside == tmp_path / f"{ASIDE}{number}"
        with StateStore(tmp_path) as store:
            store.open()
            assert store.load().partitions == {}
    (tmp_path / FILE_NAME).write_bytes(content)
    with opened(tmp_path) as store:
        assert len(store.runs()) == 2


def test_the_log_goes_aside_with_its_file(tmp_path: Path) -> None:
    with opened(tmp_path / "live") as store:
        store.begin_run(run_start())
        shutil.copytree(tmp_path / "live", tmp_path / "killed")
    killed = tmp_path / "killed"
    log = (killed / f"{FILE_NAME}-wal").read_bytes()
    assert log
    (killed / FILE_NAME).write_bytes(b"junk" * 5000)
    with pytest.raises(DamagedStateError, match="not an SQLite file"):
        StateStore(killed, lambda: MOMENT).open()
    assert (killed / f"{ASIDE}-wal").read_bytes() == log


def test_a_log_without_its_file_is_not_replayed_into_a_new_one(tmp_path: Path) -> None:
    with opened(tmp_path / "live") as store:
        store.begin_run(run_start())
        shutil.copytree(tmp_path / "live", tmp_path / "killed")
    (tmp_path / "killed" / FILE_NAME).unlink()
    with pytest.raises(DamagedStateError, match=r"missing, though its log state\.sqlite3-wal is there"):
        opened(tmp_path / "killed")
    with opened(tmp_path / "killed") as store:
        assert store.runs() == []


def test_a_start_that_was_killed_while_it_made_the_file(tmp_path: Path) -> None:
    (tmp_path / f"{FILE_NAME}.new").write_bytes(b"SQLite format 3\0 half")
    with opened(tmp_path) as store:
        assert store.runs() == []
    assert os.listdir(tmp_path) == [FILE_NAME]


def test_a_file_of_another_program_is_left_alone(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / FILE_NAME)
    connection.execute("CREATE TABLE theirs (x)")
    connection.close()
    before = (tmp_path / FILE_NAME).read_bytes()
    for look in (opened, StateStore.read):
        with pytest.raises(StateError, match="an SQLite file of another program") as raised:
            look(tmp_path)
        assert not isinstance(raised.value, DamagedStateError)
    assert os.listdir(tmp_path) == [FILE_NAME]
    assert (tmp_path / FILE_NAME).read_bytes() == before


def test_a_file_of_a_newer_version_is_left_alone(tmp_path: Path) -> None:
    fill(tmp_path, 1)
    edit(tmp_path, "UPDATE store SET written_by = '7.1.0'")
    edit(tmp_path, "PRAGMA user_version = 99")
    before = (tmp_path / FILE_NAME).read_bytes()
    for look in (opened, StateStore.read):
        with pytest.raises(StateError, match=r"newer streambatch \(schema 99; .* up to 1\); run streambatch 7\.1\.0"):
            look(tmp_path)
    assert (tmp_path / FILE_NAME).read_bytes() == before


def test_an_older_file_climbs_the_ladder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = fill(tmp_path, 3)
    edit(tmp_path, "PRAGMA user_version = 1")

    def second(connection: sqlite3.Connection) -> None:
        connection.execute("CREATE TABLE more (id INTEGER PRIMARY KEY, what TEXT)")
        connection.execute("INSERT INTO more VALUES (1, 'made by the second step')")

    monkeypatch.setattr(store_schema, "LADDER", [*store_schema.LADDER, second])
    monkeypatch.setattr(database, "LADDER", store_schema.LADDER)
    with pytest.raises(StateError, match=f"written by streambatch {__version__}; `streambatch run` brings it up"):
        StateStore.read(tmp_path)
    for _ in range(2):
        with opened(tmp_path) as store:
            assert seen(store) == expected
    edit(tmp_path, "DELETE FROM more")
    with pytest.raises(DamagedStateError, match="rows are not those"):
        opened(tmp_path)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 1 MiB."""
    root()
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(folder)], check=True)
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_an_outage_and_nothing_is_lost(small_disk: Path) -> None:
    ballast = small_disk / "ballast"
    with opened(small_disk) as store:
        store.begin_run(run_start())
        store.commit(checkpoint(1, [0]))
        ballast.write_bytes(bytes(700 << 10))
        large = checkpoint(2, [1], steps=random.randbytes(300 << 10))
        before = seen(store)
        for _ in range(3):
            with pytest.raises(StateOutage, match="full"):
                store.commit(large)
            assert seen(store) == before
        ballast.unlink()
        store.commit(large)
        expected = seen(store)
        assert [entry.batch for entry in store.journal("r1")] == [0, 1]
    with opened(small_disk) as store:
        assert seen(store) == expected


def test_a_full_disk_keeps_a_new_state_from_being_made(small_disk: Path) -> None:
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(1000 << 10))
    for _ in range(2):
        with pytest.raises(StateOutage):
            opened(small_disk)
    assert not (small_disk / FILE_NAME).exists()
    ballast.unlink()
    with opened(small_disk) as store:
        assert store.runs() == []


def test_a_file_that_can_not_be_read_is_no_damage(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).mkdir()
    with pytest.raises(StateOutage):
        opened(tmp_path)
    assert (tmp_path / FILE_NAME).is_dir()


COMMITTER = """
import sys
from pathlib import Path
from tests.durability.stores import checkpoint, opened, run_start
with opened(Path(sys.argv[1])) as store:
    store.begin_run(run_start())
    for at in range(100_000):
        store.commit(checkpoint(float(at), [at]))
        print(at, flush=True)
"""


def test_what_was_committed_outlives_a_kill(tmp_path: Path) -> None:
    command = [sys.executable, "-c", COMMITTER, str(tmp_path)]
    with subprocess.Popen(command, cwd=Path(__file__).parents[3], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        said = [int(process.stdout.readline()) for _ in range(200)]
        process.kill()
        said += map(int, process.stdout.read().split())
    with opened(tmp_path) as store:
        state = store.load()
        assert state.next_batch in (said[-1] + 1, said[-1] + 2)
        assert state.partitions["in"]["a.jsonl"].position == 100 * state.next_batch
        assert [entry.batch for entry in store.journal("r1")] == list(range(state.next_batch))


STORER = """
import sys
from pathlib import Path
from streambatch.core.errors import StateError, StateOutage
from tests.durability.stores import checkpoint, opened, run_start
with opened(Path(sys.argv[1])) as store:
    store.begin_run(run_start())
    store.commit(checkpoint(0.0, [0]))
    print("committed", flush=True)
    for _ in range(2):
        try:
            store.commit(checkpoint(1.0, [1]))
        except StateError as error:
            print(isinstance(error, StateOutage), error.problem, flush=True)
"""


@pytest.mark.slow
@needs("strace")
def test_an_fsync_that_failed_is_never_retried_as_success(tmp_path: Path) -> None:
    def store_with_a_failing(number: int) -> tuple[list[str], list[str]]:
        """Let the disk fail at one call of fdatasync. Returns what was traced and what was said."""
        trace, folder = tmp_path / f"trace-{number}", tmp_path / f"state-{number}"
        command = ["strace", "-f", "-o", str(trace), "-e", "trace=fdatasync,write"]
        command += ["-e", f"inject=fdatasync:error=EIO:when={number}"]
        done = subprocess.run(
            [*command, sys.executable, "-c", STORER, str(folder)],
            cwd=Path(__file__).parents[3],
            capture_output=True,
            text=True,
        )
        if not trace.exists() or not trace.read_text():
            lacking(f"strace can't trace here: {done.stderr.strip()}")
        return trace.read_text().splitlines(), done.stdout.splitlines()

    traced, said = store_with_a_failing(10_000)
    assert said == ["committed"]
    committed = next(at for at, line in enumerate(traced) if '"committed' in line)
    number = sum("fdatasync(" in line for line in traced[:committed]) + 1
    _, said = store_with_a_failing(number)
    assert said == ["committed", *["False what was stored last may be lost: disk I/O error; start again"] * 2]
    with opened(tmp_path / f"state-{number}") as store:
        assert store.load().next_batch in (1, 2)


def test_a_file_that_could_only_be_opened_for_reading_is_an_outage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite falls back to that by itself when a disk errs, and every write would fail from then on."""
    with opened(tmp_path):
        pass
    connected = database._connected
    monkeypatch.setattr(database, "_connected", lambda path, option: connected(path, "mode=ro"))
    with pytest.raises(StateOutage, match="readonly"), opened(tmp_path):
        pass
    monkeypatch.undo()
    with opened(tmp_path):
        pass
