"""The append-only file: whole writes or none, durable syncs, one owner. Real files, full devices, processes."""

import errno
import os
import resource
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import anyio
import pytest

from streambatch.core.errors import HeldError, SinkError
from streambatch.storage.files import AppendFile

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@asynccontextmanager
async def opened(path: Path) -> AsyncIterator[AppendFile]:
    file = AppendFile(path, "scores")
    await file.open()
    try:
        yield file
    finally:
        await file.close()


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """Let no file of this process grow over `size`: a write over it is cut short, the next fails with EFBIG."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


async def test_what_is_written_is_in_the_file_with_folders_made(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "out.jsonl"
    async with opened(path) as file:
        await file.write(b"one\n")
        await file.write(b"")
        await file.write(b"two\n" * 1_000_000)
        assert file.length == path.stat().st_size == 4_000_004
        assert await file.sync() == 4_000_004
        assert await file.sync() == 4_000_004
    assert path.read_bytes() == b"one\n" + b"two\n" * 1_000_000


async def test_it_goes_on_at_the_end_and_can_be_cut(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_bytes(b"one\ntwo\nth")
    async with opened(path) as file:
        assert file.length == 10
        assert await file.head(5) == b"one\nt"
        await file.truncate(8)
        await file.write(b"three\n")
        assert await file.sync() == 14
    assert path.read_bytes() == b"one\ntwo\nthree\n"


@pytest.mark.parametrize(
    ("before", "after"), [(b"", b"x\n"), (b"a\n", b"a\nx\n"), (b"a", b"a\nx\n"), (b"\n", b"\nx\n")]
)
async def test_an_unterminated_line_is_ended(tmp_path: Path, before: bytes, after: bytes) -> None:
    path = tmp_path / "out"
    path.write_bytes(before)
    async with opened(path) as file:
        await file.end_line()
        await file.write(b"x\n")
    assert path.read_bytes() == after


async def test_a_write_that_fails_half_way_leaves_nothing_and_can_be_tried_again(tmp_path: Path) -> None:
    path = tmp_path / "out"
    async with opened(path) as file:
        await file.write(b"first\n")
        with file_size_limit(1000):
            for _ in range(2):
                with pytest.raises(SinkError) as caught:
                    await file.write(b"x" * 2000)
                assert str(caught.value) == f"sink scores: {path}: {os.strerror(errno.EFBIG)}"
                assert path.read_bytes() == b"first\n"
        await file.write(b"x" * 2000)
        assert await file.sync() == 2006
    assert path.read_bytes() == b"first\n" + b"x" * 2000


async def test_a_torn_write_that_could_not_be_cut_off_is_cut_off_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "out"

    def fail(fd: int, length: int) -> None:
        raise OSError(errno.EIO, "ftruncate failed")

    async with opened(path) as file:
        with file_size_limit(1000), monkeypatch.context() as patch:
            patch.setattr(os, "ftruncate", fail)
            with pytest.raises(SinkError):
                await file.write(b"x" * 2000)
            assert path.stat().st_size == 1000
            with pytest.raises(SinkError, match="ftruncate failed"):
                await file.write(b"y")
        await file.write(b"whole\n")
        assert file.length == 6
    assert path.read_bytes() == b"whole\n"


async def test_a_full_disk_is_named() -> None:
    async with opened(Path("/dev/full")) as file:
        with pytest.raises(SinkError) as caught:
            await file.write(b"x")
        assert str(caught.value) == "sink scores: /dev/full: No space left on device"
        assert file.length == 0


async def test_a_device_is_anybodys_and_needs_no_sync() -> None:
    async with opened(Path("/dev/null")) as first, opened(Path("/dev/null")) as second:
        await first.write(b"abc")
        await second.write(b"de")
        assert (await first.sync(), await second.sync()) == (3, 2)


async def test_a_failed_fsync_is_final(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened(tmp_path / "out") as file:
        await file.write(b"x\n")

        def fail(fd: int) -> None:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", fail)
            with pytest.raises(SinkError, match="what was written since the last sync may be lost: Input/output error"):
                await file.sync()
        with pytest.raises(SinkError, match="may be lost"):
            await file.sync()
        with pytest.raises(SinkError, match="may be lost"):
            await file.write(b"y\n")


async def test_a_new_file_and_new_folders_are_synced_with_what_names_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    fsync = os.fsync

    def record(fd: int) -> None:
        synced.append(os.path.relpath(os.readlink(f"/proc/self/fd/{fd}"), tmp_path))
        fsync(fd)

    monkeypatch.setattr(os, "fsync", record)
    async with opened(tmp_path / "a" / "b" / "out") as file:
        await file.write(b"x\n")
        await file.sync()
        assert synced == ["a/b/out", "a/b", "a", "."]
        await file.sync()
        await file.write(b"y\n")
        await file.sync()
        assert synced[4:] == ["a/b/out"]


async def test_a_write_during_a_sync_is_left_to_the_next_sync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    syncs = 0
    fsync = os.fsync
    entered, go_on, synced = anyio.Event(), anyio.Event(), anyio.Event()

    def wait(fd: int) -> None:
        nonlocal syncs
        syncs += 1
        if syncs == 1:
            anyio.from_thread.run_sync(entered.set)
            anyio.from_thread.run(go_on.wait)
        fsync(fd)

    monkeypatch.setattr(os, "fsync", wait)
    lengths: list[int] = []

    async def sync() -> None:
        lengths.append(await file.sync())
        synced.set()

    async with opened(tmp_path / "out") as file, anyio.create_task_group() as tasks:
        await file.write(b"x\n")
        tasks.start_soon(sync)
        await entered.wait()
        await file.write(b"y\n")
        go_on.set()
        await synced.wait()
        before = syncs
        assert await file.sync() == 4
        assert syncs == before + 1
    assert lengths == [2]


async def test_cancellation_leaves_whole_writes(tmp_path: Path) -> None:
    path = tmp_path / "out"
    async with opened(path) as file:
        with anyio.CancelScope() as scope:
            scope.cancel()
            await file.write(b"whole\n")
            await anyio.lowlevel.checkpoint()
        assert path.read_bytes() == b"whole\n"[: file.length]
        await file.write(b"more\n")
        assert path.stat().st_size == file.length


HOLD = """
import anyio, sys
from pathlib import Path
from streambatch.storage.files import AppendFile

async def main():
    file = AppendFile(Path(sys.argv[1]), "other")
    await file.open()
    print("open", flush=True)
    sys.stdin.read()
    await file.close()

anyio.run(main)
"""


async def test_a_second_process_is_told_who_has_the_file(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_bytes(b"old\n")
    async with await anyio.open_process([sys.executable, "-c", HOLD, str(path)]) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        assert (await other.stdout.receive()).startswith(b"o")
        file = AppendFile(path, "scores")
        with pytest.raises(HeldError) as caught:
            await file.open()
        assert not file.is_open
        await other.stdin.aclose()
        assert await other.wait() == 0
    wanted = f"{path} is being written by process {other.pid}; stop that, or choose another path"
    assert str(caught.value) == wanted
    async with opened(path) as file:
        assert file.length == 4


async def test_a_second_pipeline_of_one_process_is_told_too(tmp_path: Path) -> None:
    async with opened(tmp_path / "out"):
        with pytest.raises(HeldError, match="is being written by this process"):
            await AppendFile(tmp_path / "out", "scores").open()


async def test_a_pipe_or_a_folder_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(SinkError, match=r"sink scores: .*/pipe: neither a file nor a device"):
        await AppendFile(tmp_path / "pipe", "scores").open()
    with pytest.raises(SinkError) as caught:
        await AppendFile(tmp_path, "scores").open()
    assert str(caught.value) == f"sink scores: {tmp_path}: Is a directory"


async def test_a_folder_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"")
    with pytest.raises(SinkError) as caught:
        await AppendFile(tmp_path / "a" / "b" / "out", "scores").open()
    assert str(caught.value) == f"sink scores: {tmp_path}/a/b: Not a directory"


async def test_a_file_that_is_not_open_says_so(tmp_path: Path) -> None:
    file = AppendFile(tmp_path / "out", "scores")
    with pytest.raises(SinkError, match="is not open"):
        await file.write(b"x")
    await file.close()
    async with opened(tmp_path / "out") as file:
        pass
    with pytest.raises(SinkError, match="is not open"):
        await file.sync()
    await file.close()


async def test_a_closed_file_can_be_opened_again(tmp_path: Path) -> None:
    file = AppendFile(tmp_path / "out", "scores")
    for length in (2, 4):
        await file.open()
        await file.write(b"x\n")
        assert await file.sync() == length
        await file.close()
