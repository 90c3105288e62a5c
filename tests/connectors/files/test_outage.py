"""Files and folders that can't be read for a while: held, reported once, then read on, nothing lost or doubled."""

import errno
import gzip
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import pyarrow as pa
import pyarrow.ipc
import pytest

from streambatch.connectors.files import follow, outage
from streambatch.connectors.files.outage import Outages, is_passing
from streambatch.connectors.files.source import FileSource
from streambatch.connectors.files.table_file import TableFile
from streambatch.core.errors import SourceError
from streambatch.core.parts import Site
from tests.connectors.files.filing import FileIntake, FileObserver, following, read_all
from tests.connectors.intakes import until

pytestmark = [pytest.mark.anyio, pytest.mark.parametrize("anyio_backend", ["asyncio"])]
NOBODY = 65534
LINES = b"".join(b"%d\n" % i for i in range(600_000))


@pytest.fixture(autouse=True)
def _try_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outage, "RETRIES", replace(outage.RETRIES, longest_seconds=0.01))
    monkeypatch.setattr(follow, "LOOK_SECONDS", 0.01)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder whose owner may be refused what is in it, as the superuser never is."""
    folder = Path(tempfile.mkdtemp())
    is_root = os.geteuid() == 0
    if is_root:
        os.chown(folder, NOBODY, NOBODY)
        os.seteuid(NOBODY)
    try:
        yield folder
    finally:
        if is_root:
            os.seteuid(0)
        folder.chmod(0o700)
        shutil.rmtree(folder)


def follow_all(pattern: object) -> FileSource:
    return FileSource(str(pattern), follow=True, rotate_wait=0.02)


def append(path: Path, raw: bytes) -> None:
    with path.open("ab") as file:
        file.write(raw)


def test_waits_double_up_to_a_limit(anyio_backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    waits = [outage.RETRIES.wait_seconds(n, lambda: 1.0) for n in (1, 2, 3, 6, 7, 10_000)]
    assert waits == [0.1, 0.2, 0.4, 3.2, 5.0, 5.0]
    assert outage.RETRIES.wait_seconds(1, lambda: 0.0) == 0.05


def test_what_passes(anyio_backend: str) -> None:
    assert all(is_passing(OSError(code, "")) for code in (errno.EIO, errno.EACCES, errno.ESTALE, errno.ENODEV))
    assert not any(is_passing(OSError(code, "")) for code in (errno.ENOENT, errno.ELOOP, errno.ENAMETOOLONG))


def test_an_outage_of_many_is_told_once(anyio_backend: str) -> None:
    observer = FileObserver()
    outages, error = Outages("in", observer), OSError(errno.EIO, "Input/output error")
    for _ in range(3):
        outages.failed("a", "a", error)
    outages.failed("b", "b", error)
    outages.looked({"c": error})
    outages.cured("a")
    outages.cured("b")
    assert len(observer.outages) == 1
    outages.looked({})
    assert observer.outages == ["source in: a: Input/output error; it is tried again until it can be read", "recovered"]


async def test_a_file_that_nobody_may_read(folder: Path) -> None:
    (folder / "a").write_bytes(b"1\n")
    (folder / "b").write_bytes(b"2\n")
    (folder / "a").chmod(0)
    intake = FileIntake()
    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(FileSource(f"{folder}/*").build(Site()).run, intake)
            await intake.files.told(1)
            await anyio.sleep(0.1)
            (folder / "a").chmod(0o600)
    assert intake.lines() == [b"1", b"2"]
    assert intake.files.outages[0].startswith(f"source file: {folder}/a: Permission denied")
    assert intake.files.outages[1:] == ["recovered"]


async def test_a_followed_file_that_nobody_may_read_holds_up_no_other(folder: Path) -> None:
    (folder / "a").write_bytes(b"1\n")
    (folder / "a").chmod(0)
    intake = FileIntake()
    async with following(follow_all(folder / "*"), intake):
        await intake.files.told(1)
        append(folder / "b", b"2\n")
        await intake.holds(1)
        (folder / "a").rename(folder / "c")
        await anyio.sleep(0.1)
        (folder / "c").chmod(0o600)
        await intake.holds(2)
        await intake.files.told(2)
    assert intake.lines() == [b"2", b"1"]
    assert intake.files.outages[1:] == ["recovered"]


@pytest.mark.parametrize("mode", [0o000, 0o100, 0o400])
async def test_a_folder_that_nobody_may_look_into(folder: Path, mode: int) -> None:
    (folder / "in").mkdir()
    (folder / "in" / "a").write_bytes(b"1\n")
    intake = FileIntake()
    async with following(follow_all(folder / "in" / "*"), intake):
        await intake.holds(1)
        (folder / "in").chmod(mode)
        await intake.files.told(1)
        await anyio.sleep(0.1)
        (folder / "in").chmod(0o700)
        await intake.files.told(2)
        append(folder / "in" / "a", b"2\n")
        await intake.holds(2)
    assert intake.by_partition() == {f"{folder}/in/a": [b"1\n", b"2\n"]}
    assert [event for _, event in intake.files.events] == ["opened"]
    assert intake.files.outages[1:] == ["recovered"]


async def test_a_folder_is_waited_for_by_a_run_that_ends(folder: Path) -> None:
    (folder / "in").mkdir()
    (folder / "in" / "a").write_bytes(b"1\n")
    (folder / "in").chmod(0)
    intake = FileIntake()
    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(FileSource(f"{folder}/in/*").build(Site()).run, intake)
            await intake.files.told(1)
            (folder / "in").chmod(0o700)
    assert intake.lines() == [b"1"]
    assert intake.files.outages[1:] == ["recovered"]


@pytest.mark.parametrize("is_followed", [False, True])
async def test_a_device_that_fails_is_tried_until_the_stop(tmp_path: Path, is_followed: bool) -> None:
    (tmp_path / "a").symlink_to("/proc/self/mem")
    append(tmp_path / "b", b"1\n")
    intake = FileIntake()
    async with following(FileSource(f"{tmp_path}/*", follow=is_followed, compression="none"), intake):
        await intake.files.told(1)
        if is_followed:
            await intake.holds(1)
        await anyio.sleep(0.1)
    assert len(intake.files.outages) == 1
    assert f"{tmp_path}/a: Input/output error" in intake.files.outages[0]


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE])
async def test_a_file_without_a_name_whose_handle_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """As on a network disk: for a while, or, once its server has removed the file, for good."""
    (tmp_path / "in").mkdir()
    path, away, fstat = tmp_path / "in" / "a", tmp_path / "a", os.fstat
    append(path, b"1\n")
    inode, is_failing = path.stat().st_ino, True

    def asked(fd: int) -> os.stat_result:
        status = fstat(fd)
        if is_failing and status.st_ino == inode:
            raise OSError(code, os.strerror(code))
        return status

    intake = FileIntake()
    async with following(follow_all(tmp_path / "in" / "*"), intake):
        await intake.holds(1)
        monkeypatch.setattr(os, "fstat", asked)
        path.rename(away)
        append(tmp_path / "in" / "b", b"2\n")
        await intake.holds(2)
        if code == errno.EIO:
            await intake.files.told(1)
            append(away, b"3\n")
            await anyio.sleep(0.1)
            is_failing = False
            await intake.holds(3)
        end = "completed" if code == errno.EIO else "deleted"
        await until(lambda: (str(path), end) in intake.files.events)
    assert sorted(intake.lines()) == [b"1", b"2", b"3"][: intake.count]
    assert intake.files.outages[1:] == ([] if code == errno.ESTALE else ["recovered"])


class Faults:
    """Has the last of so many calls, and the next, fail."""

    def __init__(self, call: Callable[..., Any], every: int) -> None:
        self.call, self.every, self.calls = call, every, 0

    def __call__(self, *args: Any) -> Any:
        self.calls += 1
        if self.calls % self.every < 2:
            raise OSError(errno.EIO, "Input/output error")
        return self.call(*args)


@pytest.mark.parametrize("is_packed", [False, True])
@pytest.mark.parametrize("is_followed", [False, True])
async def test_reads_that_fail_now_and_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_packed: bool, is_followed: bool
) -> None:
    (tmp_path / "a").write_bytes(gzip.compress(LINES, 0) if is_packed and not is_followed else LINES)
    monkeypatch.setattr(os, "pread", Faults(os.pread, 11))
    intake = FileIntake()
    if is_followed:
        async with following(follow_all(tmp_path / "*"), intake):
            await intake.holds(600_000)
            await until(lambda: intake.files.outages[-1] == "recovered")
    else:
        await read_all(FileSource(f"{tmp_path}/*"), intake)
    assert b"".join(intake.records()) == LINES
    assert intake.files.outages[-1] == "recovered"
    assert [event for _, event in intake.files.events if event != "completed"] == ["opened"]


async def test_an_end_that_can_not_be_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_bytes(LINES)
    pread, fstat, ends = os.pread, os.fstat, [0]

    def reading(fd: int, size: int, at: int) -> bytes:
        block = pread(fd, size, at)
        ends[0] += not block
        return block

    def asked(fd: int) -> os.stat_result:
        if ends[0] == 1:
            raise OSError(errno.EIO, "Input/output error")
        return fstat(fd)

    monkeypatch.setattr(os, "pread", reading)
    monkeypatch.setattr(os, "fstat", asked)
    intake = await read_all(FileSource(f"{tmp_path}/a"), FileIntake())
    assert b"".join(intake.records()) == LINES
    assert intake.files.outages[-1] == "recovered"
    assert [event for _, event in intake.files.events] == ["opened", "completed"]


@pytest.mark.parametrize("is_packed", [False, True])
async def test_a_table_whose_reads_fail_now_and_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_packed: bool
) -> None:
    table = pa.table({"id": range(50_000)})
    with pa.ipc.new_stream(str(tmp_path / "a"), table.schema) as stream:
        stream.write_table(table, 5000)
    if is_packed:
        (tmp_path / "a").write_bytes(gzip.compress((tmp_path / "a").read_bytes()))
    read = TableFile.read
    faults = Faults(read, 3)
    monkeypatch.setattr(TableFile, "read", lambda self: faults(self))
    intake = await read_all(FileSource(f"{tmp_path}/a", format="arrow"), FileIntake())
    assert intake.positions == {f"{tmp_path}/a": 50_000}
    assert intake.count == 50_000
    assert [event for _, event in intake.files.events] == ["opened", "completed"]


async def test_a_file_that_is_another_after_the_outage_is_no_outage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, pread = tmp_path / "a", os.pread
    path.write_bytes(LINES)

    def fail(fd: int, size: int, at: int) -> bytes:
        if at:
            path.unlink(missing_ok=True)
            path.write_bytes(b"other\n")
            raise OSError(errno.EIO, "Input/output error")
        return pread(fd, size, at)

    monkeypatch.setattr(os, "pread", fail)
    intake = FileIntake()
    with pytest.raises(SourceError, match="was replaced while it was read"):
        await read_all(FileSource(str(path)), intake)
    assert intake.lines() == LINES.split(b"\n")[: intake.count]
