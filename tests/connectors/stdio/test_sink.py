"""The stdout sink in processes of its own, into pipes, files and nothing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

WRITE = """
import os, sys, anyio
from streambatch.connectors.stdio.sink import StdoutSink
from streambatch.core.parts import Site

synced = []
os.fsync = synced.append

async def main():
    sink = StdoutSink(format="csv").build(Site())
    await sink.open(b"id,score\\n")
    for i in range(int(sys.argv[1])):
        await sink.write(b"%07d,0.5\\n" % i * int(sys.argv[2]))
    print(await sink.sync(), synced, file=sys.stderr)
    await sink.close()

try:
    anyio.run(main, backend=sys.argv[3])
except Exception as error:
    print(type(error).__name__, error, file=sys.stderr)
"""
BACKENDS = pytest.mark.parametrize("backend", ["asyncio", "trio"])


def write(writes: int, repeats: int, backend: str = "asyncio") -> list[str]:
    return [sys.executable, "-c", WRITE, str(writes), str(repeats), backend]


def expected(writes: int, repeats: int) -> bytes:
    return b"id,score\n" + b"".join(b"%07d,0.5\n" % i * repeats for i in range(writes))


@BACKENDS
def test_scores_go_through_a_pipe_whatever_their_size(backend: str) -> None:
    done = subprocess.run(write(20, 20_000, backend), capture_output=True, timeout=30, check=True)
    assert done.stdout == expected(20, 20_000)
    assert done.stderr == b"%d []\n" % len(done.stdout)


@BACKENDS
def test_scores_go_into_a_file_and_are_synced(tmp_path: Path, backend: str) -> None:
    with open(tmp_path / "out", "wb") as out:
        done = subprocess.run(write(3, 10, backend), stdout=out, stderr=subprocess.PIPE, timeout=30, check=True)
    assert (tmp_path / "out").read_bytes() == expected(3, 10)
    assert done.stderr == b"%d [1]\n" % len(expected(3, 10))


@BACKENDS
def test_scores_go_to_a_terminal(backend: str) -> None:
    reader, terminal = os.openpty()
    process = subprocess.Popen(write(1, 2, backend), stdout=terminal, stderr=subprocess.PIPE)
    os.close(terminal)
    lines = b""
    while lines.count(b"\n") < 3:
        lines += os.read(reader, 4096)
    assert process.communicate(timeout=30)[1] == b"33 []\n"
    os.close(reader)
    assert lines.replace(b"\r\n", b"\n") == expected(1, 2)


@BACKENDS
def test_a_reader_that_goes_away_is_a_sink_error(backend: str) -> None:
    process = subprocess.Popen(write(1000, 10_000, backend), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.read(10)
    process.stdout.close()
    error = process.stderr.read()
    process.stderr.close()
    assert process.wait(30) == 0
    assert error == b"SinkError sink stdout: the reader of standard output went away\n"


def test_a_full_disk_is_an_outage() -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(write(1, 1), stdout=full, stderr=subprocess.PIPE, timeout=30, check=True)
    assert done.stderr == b"SinkOutage sink stdout: standard output: No space left on device\n"


def test_a_closed_standard_output_is_a_sink_error() -> None:
    command = ["sh", "-c", 'exec "$@" >&-', "sh", *write(1, 1)]
    done = subprocess.run(command, stderr=subprocess.PIPE, timeout=30, check=True)
    assert done.stderr == b"SinkError sink stdout: standard output: closed since the process started\n"


STALL = """
import fcntl, os, sys, anyio
from streambatch.connectors.stdio.sink import StdoutSink
from streambatch.core.parts import Site

async def main():
    sink = StdoutSink().build(Site())
    await sink.open(b"a header, so that the block after it finds too little room")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(sink.write, b"x" * (1 << 20))
        while not fill():
            await anyio.sleep(0)
        tasks.cancel_scope.cancel()
    await sink.close()
    flags = fcntl.fcntl(1, fcntl.F_GETFL)
    print("stopped", bool(flags & os.O_NONBLOCK), fcntl.fcntl(1, fcntl.F_GETFD) >= 0, file=sys.stderr)

def fill():
    import array, termios
    held = array.array("i", [0])
    fcntl.ioctl(int(sys.argv[1]), termios.FIONREAD, held)
    return held[0] > 60_000

anyio.run(main)
"""


def test_a_reader_that_stalls_holds_up_no_stop_and_the_pipe_stays_as_it_was() -> None:
    reader, writer = os.pipe()
    command = [sys.executable, "-c", STALL, str(reader)]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, pass_fds=[reader], timeout=30, check=True)
    os.close(writer)
    os.close(reader)
    assert done.stderr == b"stopped False True\n"


RETRY = """
import os, resource, signal, sys, anyio
from streambatch.core.errors import SinkError
from streambatch.connectors.stdio.sink import StdoutSink
from streambatch.core.parts import Site

async def main():
    sink = StdoutSink().build(Site())
    await sink.open(b"")
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (15, hard))
    for _ in range(2):
        try:
            await sink.write(b"0123456789\\n" * 2)
        except SinkError as error:
            print(error, file=sys.stderr)
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    await sink.write(b"whole\\n")

anyio.run(main)
"""


def test_after_a_torn_write_the_next_starts_a_line(tmp_path: Path) -> None:
    with open(tmp_path / "out", "wb") as out:
        done = subprocess.run([sys.executable, "-c", RETRY], stdout=out, stderr=subprocess.PIPE, timeout=30, check=True)
    assert done.stderr == b"sink stdout: standard output: File too large\n" * 2
    assert (tmp_path / "out").read_bytes() == b"0123456789\n0123\nwhole\n"
