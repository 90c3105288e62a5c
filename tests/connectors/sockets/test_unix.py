import os
import socket
from pathlib import Path

import anyio
import pytest

from streambatch.connectors.sockets.unix import PATH_BYTES_MAX, UnixReader, UnixSource
from streambatch.core.errors import SourceError
from streambatch.core.parts import Site
from tests.connectors.intakes import KeepingIntake

pytestmark = pytest.mark.anyio


async def send_one(source: UnixReader, intake: KeepingIntake) -> None:
    """Run a source for one record."""
    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(source.run, intake)
            async with await anyio.connect_unix(await source.listening()) as client:
                await client.send(b"one\n")
            await intake.holds(1)
            tasks.cancel_scope.cancel()


async def test_records_come_in_and_the_socket_goes(tmp_path: Path) -> None:
    path, intake = tmp_path / "in.sock", KeepingIntake()
    await send_one(UnixSource(path).build(Site()), intake)
    assert intake.by_partition() == {"run-1": [b"one\n"]}
    assert not path.exists()


async def test_a_stale_socket_is_replaced(tmp_path: Path) -> None:
    path, intake = tmp_path / "in.sock", KeepingIntake()
    with socket.socket(socket.AF_UNIX) as gone:
        gone.bind(str(path))
    await send_one(UnixSource(path).build(Site()), intake)
    assert intake.count == 1


async def test_a_live_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "in.sock"
    with socket.socket(socket.AF_UNIX) as live:
        live.bind(str(path))
        live.listen()
        for _ in range(3):
            with pytest.raises(SourceError, match=f"can't listen on {path}: another process listens there"):
                await UnixSource(path).build(Site()).run(KeepingIntake())
        assert path.is_socket()
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))


async def test_a_live_socket_with_a_full_backlog_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "in.sock"
    with socket.socket(socket.AF_UNIX) as live, socket.socket(socket.AF_UNIX) as waiting:
        live.bind(str(path))
        live.listen(0)
        waiting.connect(str(path))
        with pytest.raises(SourceError, match="another process listens there"):
            await UnixSource(path).build(Site()).run(KeepingIntake())
        assert path.is_socket()


async def test_a_socket_of_another_kind_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "in.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as live:
        live.bind(str(path))
        with pytest.raises(SourceError, match=f"can't listen on {path}: Protocol wrong type"):
            await UnixSource(path).build(Site()).run(KeepingIntake())
        assert path.is_socket()


async def test_a_file_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "in.sock"
    path.write_text("precious")
    with pytest.raises(SourceError, match="not a socket; remove it or choose another path"):
        await UnixSource(path).build(Site()).run(KeepingIntake())
    assert path.read_text() == "precious"


async def test_the_socket_of_a_successor_is_left_alone(tmp_path: Path) -> None:
    path, source, intake = tmp_path / "in.sock", UnixSource(tmp_path / "in.sock").build(Site()), KeepingIntake()
    with anyio.fail_after(10), socket.socket(socket.AF_UNIX) as successor:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(source.run, intake)
            await source.listening()
            path.unlink()
            successor.bind(str(path))
            tasks.cancel_scope.cancel()
        assert path.is_socket()


async def test_a_path_that_is_too_long_says_how_long_it_may_be(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 120)
    length = len(os.fsencode(path))
    with pytest.raises(SourceError, match=f"a socket's path may have {PATH_BYTES_MAX} bytes, this one has {length}"):
        await UnixSource(path).build(Site()).run(KeepingIntake())


async def test_the_longest_path_works(tmp_path: Path) -> None:
    intake = KeepingIntake()
    folder = tmp_path
    path = folder / ("x" * (PATH_BYTES_MAX - len(os.fsencode(folder)) - 1))
    await send_one(UnixSource(path).build(Site()), intake)
    assert intake.count == 1


async def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    path = tmp_path / "none" / "in.sock"
    with pytest.raises(SourceError, match=f"source local: can't listen on {path}: No such file or directory"):
        await UnixSource(path, name="local").build(Site()).run(KeepingIntake())
