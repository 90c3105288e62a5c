"""Standard input as a process gets it: descriptor 0 is exchanged under the test, or a real process is started."""

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import anyio
import anyio.to_thread
import pytest

from streambatch.connectors.stdio.source import StdinSource
from streambatch.core.errors import SourceError
from streambatch.core.parts import Site
from tests.connectors.intakes import KeepingIntake

pytestmark = pytest.mark.anyio
LINES = [b'{"n":%d}\n' % n for n in range(1000)]


@pytest.fixture
def own_stdin() -> Iterator[None]:
    """Put descriptor 0 back at the end."""
    kept = os.dup(0)
    yield
    os.dup2(kept, 0)
    os.close(kept)


def become_stdin(descriptor: int) -> None:
    os.dup2(descriptor, 0)
    os.close(descriptor)


async def read_all(format: str = "jsonl") -> KeepingIntake:
    intake = KeepingIntake()
    with anyio.fail_after(10):
        await StdinSource(format).build(Site()).run(intake)  # type: ignore[arg-type]
    assert intake.budget.used == 0
    return intake


def write(descriptor: int, data: bytes) -> None:
    with os.fdopen(descriptor, "wb") as pipe:
        pipe.write(data)


@pytest.mark.usefixtures("own_stdin")
async def test_a_pipe_is_read_to_its_end() -> None:
    reading, writing = os.pipe()
    become_stdin(reading)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(anyio.to_thread.run_sync, write, writing, b"".join(LINES * 50) + b"last")
        intake = await read_all()
    assert intake.by_partition() == {"run-1": [*LINES * 50, b"last\n"]}
    assert os.get_blocking(0)


@pytest.mark.usefixtures("own_stdin")
async def test_a_pipe_with_nothing_in_it() -> None:
    reading, writing = os.pipe()
    os.close(writing)
    become_stdin(reading)
    assert (await read_all()).count == 0


@pytest.mark.usefixtures("own_stdin")
@pytest.mark.parametrize("copies", [0, 1, 500])
async def test_a_file_is_read_to_its_end(tmp_path: Path, copies: int) -> None:
    (tmp_path / "in.jsonl").write_bytes(b"".join(LINES * copies))
    become_stdin(os.open(tmp_path / "in.jsonl", os.O_RDONLY))
    assert (await read_all()).records() == LINES * copies


@pytest.mark.usefixtures("own_stdin")
async def test_the_null_device_is_empty() -> None:
    become_stdin(os.open(os.devnull, os.O_RDONLY))
    assert (await read_all()).count == 0


@pytest.mark.usefixtures("own_stdin")
async def test_a_terminal_is_read_by_lines() -> None:
    controller, terminal = os.openpty()
    become_stdin(terminal)
    os.write(controller, b"one\ntwo\n\x04")
    intake = await read_all()
    os.close(controller)
    assert intake.records() == [b"one\n", b"two\n"]


@pytest.mark.usefixtures("own_stdin")
async def test_what_others_made_non_blocking_is_read_all_the_same() -> None:
    mine, other = socket.socketpair()
    os.dup2(mine.fileno(), 0)
    mine.close()
    os.set_blocking(0, False)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(anyio.to_thread.run_sync, write, other.detach(), b"".join(LINES))
        intake = await read_all()
    assert intake.records() == LINES


@pytest.mark.usefixtures("own_stdin")
async def test_a_folder_can_not_be_read(tmp_path: Path) -> None:
    become_stdin(os.open(tmp_path, os.O_RDONLY))
    with pytest.raises(SourceError, match="source stdin: can't read standard input: Is a directory"):
        await read_all()


@pytest.mark.usefixtures("own_stdin")
async def test_a_stop_does_not_wait_for_input_and_keeps_what_was_read() -> None:
    reading, writing = os.pipe()
    become_stdin(reading)
    intake = KeepingIntake()
    threads = threading.active_count()
    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(StdinSource().build(Site()).run, intake)
            os.write(writing, b"one\ntwo\nhal")
            await intake.holds(2)
            tasks.cancel_scope.cancel()
    os.close(writing)
    assert intake.records() == [b"one\n", b"two\n"]
    assert intake.budget.used == 0
    assert threading.active_count() == threads


@pytest.mark.usefixtures("own_stdin")
@pytest.mark.parametrize("kind", ["pipe", "file"])
async def test_a_stop_while_nothing_is_taken_keeps_what_was_read(tmp_path: Path, kind: str) -> None:
    (tmp_path / "in.jsonl").write_bytes(b"".join(LINES))
    reading, writing = os.pipe()
    os.write(writing, b"".join(LINES))
    become_stdin(reading if kind == "pipe" else os.open(tmp_path / "in.jsonl", os.O_RDONLY))
    intake = KeepingIntake()
    intake.stall()
    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(StdinSource().build(Site()).run, intake)
            await intake.is_waited_for()
            tasks.cancel_scope.cancel()
            intake.go_on()
    os.close(writing)
    if kind == "file":
        os.close(reading)
    assert intake.records() == LINES


PROGRAM = """
import anyio
from streambatch.core.errors import SourceError
from streambatch.core.parts import Site
from streambatch.connectors.stdio.source import StdinSource
from tests.connectors.intakes import KeepingIntake

intake = KeepingIntake()
try:
    anyio.run(StdinSource().build(Site()).run, intake)
except SourceError as error:
    print(error)
print(intake.records())
"""


def test_a_process_without_standard_input_says_so() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], preexec_fn=lambda: os.close(0), capture_output=True, text=True
    )
    assert done.stdout == "source stdin: standard input is closed; pipe something in, or redirect a file\n[]\n"


def test_a_process_reads_what_is_piped_in() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], input=b"one\ntwo", capture_output=True)
    assert done.stdout == b"[b'one\\n', b'two\\n']\n"
    assert done.stderr == b""
