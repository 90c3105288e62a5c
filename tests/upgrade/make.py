"""Makes what the tests here go on with: pipelines that one version of streambatch ran and left half-way.

    python -m tests.upgrade.make STREAMBATCH [--at FOLDER]

STREAMBATCH is the command of that version. What it leaves is put into tests/upgrade/from_<version>, which must not be
there yet. That of 0.1.0 was made with `--at /srv/rides`. FOLDER is removed afterwards: the state names files by it, and
while it was there, a test might read those instead of its own copies.

In a copy, a file has another path and inode than the state says, and is known by its first bytes alone. So no two files
begin alike, and a rotated file still matches its source's glob: one that does not is only looked for by its inode, in
the folder it was in.

State files are stored compressed, for they are mostly empty pages. `state.sqlite3-shm` is left out; SQLite makes it
from the `-wal` beside it.
"""

from __future__ import annotations

import argparse
import gzip
import json
import lzma
import shutil
import signal
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import ipc

from tests.e2e.running import PATIENCE_SECONDS, Daemon
from tests.upgrade.records import BIAS, WEIGHTS, ended, features, lines, prefixed, rows
from tests.upgrade.server import Server

PACKED = ("state.sqlite3", "state.sqlite3-wal")
CONFIG = """\
name = "{name}"
state_dir = "state"

{sources}

[record]
id = "id"
{record}

[model]
type = "linear"
path = "model.npz"

{sink}

[dead_letter]
stop_at = 1.0
{dead_letter}

[delivery]
{delivery}

[runs]
keep = "36500d"               # else the runs are forgotten a month after they were made

[http]
listen = "127.0.0.1:0"

{more}
"""
SLOWLY = 'checkpoint_interval = "2s"'
"""Long enough to be killed between a write and its checkpoint."""
VECTOR = 'features = "x"\nshape = [2]'


class Pipeline:
    """A folder in which the version at hand runs a pipeline."""

    def __init__(self, executable: str, folder: Path, **parts: str) -> None:
        self.executable, self.folder = executable, folder
        folder.mkdir()
        np.savez(folder / "model.npz", weights=np.array(WEIGHTS, np.float32), bias=BIAS)
        blanks = {"record": VECTOR, "dead_letter": "", "delivery": SLOWLY, "more": ""}
        text = CONFIG.format(**{"name": folder.name, **blanks, **parts})
        (folder / "pipeline.toml").write_text("\n".join(line.strip() for line in text.strip().splitlines()) + "\n")

    @contextmanager
    def running(self) -> Iterator[Daemon]:
        command = [self.executable, "run", "pipeline.toml", "--report", "report.json"]
        process = subprocess.Popen(command, cwd=self.folder, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
        daemon = Daemon(process, self.folder)
        try:
            yield daemon
        finally:
            process.kill()
            process.wait()
            daemon._reader.join()
            assert process.stderr is not None
            process.stderr.close()

    def path(self, name: str) -> Path:
        """Return the path of a file, in a folder that is there."""
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        return path

    def append(self, name: str, data: bytes) -> None:
        with self.path(name).open("ab") as file:
            file.write(data)

    def acked(self) -> int:
        """Return how many records have a score or a dead letter by the last checkpoint."""
        counts = [source["counts"] for source in self.shown()["sources"].values()]
        return sum(each["scored"] + each["dead_lettered"] for each in counts)

    def shown(self) -> Any:
        """Return what `state show` says of a copy: SQLite might change the state itself, reading it."""
        with tempfile.TemporaryDirectory() as copy:
            folder = Path(copy) / "copy"
            shutil.copytree(self.folder, folder)
            command = [self.executable, "state", "show", "pipeline.toml", "--json"]
            return json.loads(subprocess.run(command, cwd=folder, check=True, stdout=subprocess.PIPE).stdout)


def until_acked(daemon: Daemon, records: int) -> None:
    """Wait until a checkpoint covers so many records of this run."""
    daemon.event("admin_listening")

    def is_acked() -> bool:
        counts = daemon.status()["records"]
        return bool(counts["scored"] + counts["dead_lettered"] >= records)

    daemon.until(is_acked, f"{records} records are acked")


def answer_until_acked(server: Server, daemon: Daemon) -> None:
    """Answer requests, one by one, until a checkpoint covers some: those that were ready at once are acked together."""
    daemon.event("admin_listening")
    while not daemon.status()["records"]["scored"]:
        server.until_stuck()
        server.answer(1)
        time.sleep(0.3)  # for which three checkpoints are due


def kill(daemon: Daemon) -> None:
    daemon.stop(signal.SIGKILL)


def followed(executable: str, folder: Path) -> None:
    """A log that was rotated once, standardised with the statistics so far, into rotated outputs; killed after a write
    and before its checkpoint, while the last line of the log was torn."""
    made = Pipeline(
        executable,
        folder,
        sources='[source.log]\ntype = "file"\npath = "log/app.log*"\nfollow = true\nrotate_wait = "500ms"',
        record=f'{VECTOR}\ndtype = "float64"',
        sink='[sink.scores]\ntype = "file"\npath = "out/scores.jsonl"\nrotate = { max_bytes = "4KiB" }',
        dead_letter='path = "out/dead.jsonl"\nrotate = { max_bytes = "5KiB" }',
        more='[[preprocess]]\ntype = "standardize"\nfit = "running"',
    )
    made.append("log/app.log", ended(lines(0, 90)))
    with made.running() as daemon:
        until_acked(daemon, 90)
        (folder / "log/app.log").rename(folder / "log/app.log.1")
        made.append("log/app.log", ended(lines(90, 60)))
        until_acked(daemon, 150)
        before = written(folder, "out/scores*")
        made.append("log/app.log", ended(lines(150, 30)))
        daemon.until(lambda: written(folder, "out/scores*") > before, "more is written")
        made.append("log/app.log", lines(180, 1)[0][:9])
        kill(daemon)
    assert made.acked() == 150


def spooled(executable: str, folder: Path) -> None:
    """Sockets with spools, into an Arrow stream; killed while the spools held records, some of them already written.

    The first request was acked by a run before, so that its key is in a file of keys; the key of the second is in its
    segment.
    """
    spool = 'listen = "127.0.0.1:0"\nspool = { max_bytes = "4MiB" }'
    made = Pipeline(
        executable,
        folder,
        sources=f'[source.web]\ntype = "http"\n{spool}\nmax_body_bytes = "256KiB"\ndedupe_window = "36500d"\n\n'
        f'[source.wire]\ntype = "tcp"\n{spool}',
        sink='[sink.scores]\ntype = "file"\npath = "scores.arrow"\nformat = "arrow"',
    )
    requests = {"web-1": lines(0, 40), "web-2": lines(40, 30), "web-3": lines(70, 10)}
    wire = [lines(1000, 50), lines(1050, 20)]
    for name, records in requests.items():
        made.path(f"sent/{name}.jsonl").write_bytes(ended(records))
    made.path("sent/wire.jsonl").write_bytes(ended([record for part in wire for record in part]))
    with made.running() as daemon:
        post(daemon, "key-1", ended(requests["web-1"]))
        daemon.send("wire", ended(wire[0]))
        until_acked(daemon, 90)
        kill(daemon)
    with made.running() as daemon:
        keys = folder / "state/spool/web"
        daemon.until(lambda: any(keys.glob("*.keys")), "the first key is in a file of keys")
        before = rows_in(folder / "scores.arrow")
        daemon.send("wire", ended(wire[1]))
        post(daemon, "key-2", ended(requests["web-2"]))
        post(daemon, None, ended(requests["web-3"]))
        daemon.until(lambda: rows_in(folder / "scores.arrow") > before, "more is written")
        kill(daemon)
    assert made.acked() == 90


def posted(executable: str, folder: Path) -> None:
    """Finite files, one of them compressed and one a table, into a server that ceased to answer. The first run was told
    to stop and gave up; the second was killed. The server then had a batch that it had not answered, and others whose
    answers no checkpoint covered. What it was sent is in `sent.jsonl`, what this version would send next in
    `planned.jsonl`."""
    with Server() as server:
        made = Pipeline(
            executable,
            folder,
            sources='[source.parts]\ntype = "file"\npath = ["in/*.jsonl", "in/*.gz"]\n\n'
            '[source.table]\ntype = "file"\npath = "in/*.parquet"\nformat = "parquet"',
            sink=f'[sink.server]\ntype = "http"\nurl = "http://127.0.0.1:{server.port}/scores"',
            dead_letter='path = "dead.jsonl"',
            delivery='checkpoint_interval = "100ms"\ndrain_timeout = "500ms"',
            more='[batch]\nmax_records = 16\nmax_wait = "10ms"',
        )
        made.append("in/a.jsonl.gz", gzip.compress(ended(lines(0, 400)), mtime=0))
        made.append("in/b.jsonl", ended(lines(400, 200)))
        write_table(made.path("in/c.parquet"), 1000, 300)
        with made.running() as daemon:
            answer_until_acked(server, daemon)
            server.answer(3)
            server.until_stuck()
            assert daemon.stop() == 3
        server.hang_up()
        first = made.acked()
        with made.running() as daemon:
            answer_until_acked(server, daemon)
            server.answer(3)
            server.until_stuck()
            kill(daemon)
        second = made.acked()
        assert 0 < first < second < 800  # of 900
        made.append("sent.jsonl", log_of(server.read))
    made.append("planned.jsonl", log_of(planned(made)))


def planned(made: Pipeline) -> list[tuple[str, bytes]]:
    """Return the requests that this version would send next, as far as it has stored what is in them."""
    with tempfile.TemporaryDirectory() as copy, Server() as server:
        folder = Path(copy) / "copy"
        shutil.copytree(made.folder, folder)
        next_batch = made.shown()["next_batch"]
        server.answer(1000)
        command = [made.executable, "run", "pipeline.toml", "--set", f"sink.server.url=http://127.0.0.1:{server.port}/"]
        subprocess.run(command, cwd=folder, check=True, stderr=subprocess.DEVNULL)
    return [(id, body) for id, body in server.read if int(id.rpartition("-")[2]) < next_batch]


def log_of(requests: list[tuple[str, bytes]]) -> bytes:
    return ended([json.dumps({"id": id, "body": body.decode()}).encode() for id, body in requests])


def packed(executable: str, folder: Path) -> None:
    """A followed file of length-prefixed records into one gzip file; killed after a write and before its checkpoint."""
    made = Pipeline(
        executable,
        folder,
        sources='[source.frames]\ntype = "file"\npath = "in.bin"\nfollow = true\nformat = "length_prefixed"',
        sink='[sink.scores]\ntype = "file"\npath = "scores.jsonl.gz"\ncompression = "gzip"',
        dead_letter='path = "dead.jsonl"',
    )
    made.append("in.bin", prefixed(lines(0, 60)))
    with made.running() as daemon:
        until_acked(daemon, 60)
        before = written(folder, "scores*")
        made.append("in.bin", prefixed(lines(60, 40)))
        daemon.until(lambda: written(folder, "scores*") > before, "more is written")
        kill(daemon)
    assert made.acked() == 60


def stopped(executable: str, folder: Path) -> None:
    """A followed file of CSV into one plain file. The first run was killed; the second was stopped while the last row
    was torn. The row was finished since, and the file rotated."""
    made = Pipeline(
        executable,
        folder,
        sources='[source.table]\ntype = "file"\npath = "log/rows.csv*"\nfollow = true\nformat = "csv"',
        record='features = ["a", "b"]',
        sink='[sink.scores]\ntype = "file"\npath = "scores.jsonl"',
        dead_letter='path = "dead.jsonl"',
    )
    header = b"id,a,b\n"
    made.append("log/rows.csv", header + ended(rows(0, 40)))
    with made.running() as daemon:
        until_acked(daemon, 40)
        before = written(folder, "scores*")
        made.append("log/rows.csv", ended(rows(40, 30)))
        daemon.until(lambda: written(folder, "scores*") > before, "more is written")
        kill(daemon)
    torn = rows(70, 1)[0]
    with made.running() as daemon:
        made.append("log/rows.csv", torn[:4])
        until_acked(daemon, 30)
        assert daemon.stop() == 0
    assert made.acked() == 70
    made.append("log/rows.csv", ended([torn[4:], *rows(71, 9)]))
    (folder / "log/rows.csv").rename(folder / "log/rows.csv.1")
    made.append("log/rows.csv", header + ended(rows(80, 20)))


PIPELINES: tuple[Callable[[str, Path], None], ...] = (followed, spooled, posted, packed, stopped)


def post(daemon: Daemon, key: str | None, body: bytes) -> None:
    host, port = daemon.address("web")
    headers = {"Idempotency-Key": key} if key else {}
    request = urllib.request.Request(f"http://{host}:{port}/records", body, headers)
    with urllib.request.urlopen(request, timeout=PATIENCE_SECONDS) as answer:
        assert answer.status == 200


def written(folder: Path, pattern: str) -> int:
    """Return how many bytes outputs have."""
    return sum(path.stat().st_size for path in folder.glob(pattern))


def rows_in(path: Path) -> int:
    return int(ipc.open_stream(path.read_bytes()).read_all().num_rows)


def write_table(path: Path, first: int, count: int) -> None:
    x = [each if len(each) == 2 else None for each in map(features, range(first, first + count))]
    columns = {"id": pa.array(range(first, first + count)), "x": pa.array(x, pa.list_(pa.float64()))}
    pq.write_table(pa.table(columns), path, row_group_size=40)


def keep(made: Path, kept: Path) -> None:
    """Copy what a pipeline left, its state compressed."""
    shutil.copytree(made, kept, ignore=shutil.ignore_patterns("report.json", "*-shm"))
    for name in PACKED:
        path = kept / "state" / name
        if path.exists():
            path.with_name(f"{name}.xz").write_bytes(lzma.compress(path.read_bytes()))
            path.unlink()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("executable", metavar="STREAMBATCH")
    parser.add_argument(
        "--at", type=Path, help="folder to run them in, which must not be there; default: a temporary one"
    )
    options = parser.parse_args()
    told = subprocess.run([options.executable, "--version"], check=True, text=True, stdout=subprocess.PIPE).stdout
    target = Path(__file__).parent / f"from_{told.split()[-1].replace('.', '_')}"
    target.mkdir()
    at = options.at or Path(tempfile.mkdtemp()) / "pipelines"
    at.mkdir()
    try:
        for make in PIPELINES:
            make(options.executable, at / make.__name__)
            keep(at / make.__name__, target / make.__name__)
    finally:
        shutil.rmtree(at)


if __name__ == "__main__":
    main()
