"""Pipelines that an earlier version left half-way, killed or stopped, go on with the version at hand: each record has
one score or dead letter, as if nothing had happened.

What goes on is a copy, in another folder and on other inodes than those that the state names: files are found by what
they begin with. `make.py` made it. Only commands, configs and files are used here: they outlive any module.
"""

from __future__ import annotations

import gzip
import json
import lzma
import runpy
import shutil
import sys
import urllib.error
import urllib.request
from base64 import b64decode
from collections.abc import Sequence
from contextlib import AbstractContextManager, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import pytest
from pyarrow import ipc

from tests.e2e.running import PATIENCE_SECONDS, Daemon, is_balanced, running
from tests.upgrade.make import until_acked
from tests.upgrade.records import BIAS, WEIGHTS, ended, lines, prefixed
from tests.upgrade.server import Server

KEPT = Path(__file__).parent / "from_0_1_0"
ENDS = {
    "followed": ["interrupted"],
    "spooled": ["interrupted", "interrupted"],
    "posted": ["stopped", "interrupted"],
    "packed": ["interrupted"],
    "stopped": ["interrupted", "stopped"],
}
"""How the runs of each pipeline ended, oldest first."""
SCORES = {
    "followed": "out/scores.jsonl",
    "spooled": "scores.arrow",
    "packed": "scores.jsonl.gz",
    "stopped": "scores.jsonl",
}
DEAD = {"followed": "out/dead.jsonl", "spooled": "state/dead_letters.jsonl"}
Floats = npt.NDArray[np.floating[Any]]
Score = tuple[int, float]


class Left:
    """What an earlier version left of a pipeline, in a folder of this test."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.folder = name, folder / name
        shutil.copytree(KEPT / name, self.folder)
        for path in (self.folder / "state").glob("*.xz"):
            path.with_suffix("").write_bytes(lzma.decompress(path.read_bytes()))
            path.unlink()
        self.dead = DEAD.get(name, "dead.jsonl")
        self.runs = self.told("runs", "list")
        self.state = self.told("state", "show")
        self.committed = self._committed()
        self._config = (self.folder / "pipeline.toml").read_text()

    @property
    def acked(self) -> int:
        """Records that had a score or a dead letter by the last checkpoint."""
        counts = [source["counts"] for source in self.state["sources"].values()]
        return sum(each["scored"] + each["dead_lettered"] for each in counts)

    def running(self, *options: str) -> AbstractContextManager[Daemon]:
        return running(self.folder, self._config, *options)

    def append(self, name: str, data: bytes) -> None:
        with (self.folder / name).open("ab") as file:
            file.write(data)

    def told(self, *words: str) -> Any:
        """Run a command on the config and return what it tells."""
        at = 2 if words[0] in ("state", "runs", "dead-letters") else 1
        line = ["streambatch", *words[:at], str(self.folder / "pipeline.toml"), *words[at:], "--json"]
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(StringIO()) as out:
            patch.setattr(sys, "argv", line)
            with pytest.raises(SystemExit) as ended:
                runpy.run_module("streambatch", run_name="__main__")  # a process for each would take ten times as long
        assert ended.value.code == 0, f"{words}: {out.getvalue()}"
        if words[0] == "dead-letters":
            return [json.loads(line) for line in out.getvalue().splitlines()]
        return json.loads(out.getvalue())

    def written(self, name: str) -> bytes:
        """Return the bytes of an output, of one file or of all its segments."""
        path = self.folder / name
        segments = sorted(path.parent.glob(f"{path.stem}-????????{path.suffix}"))
        present = [each for each in (*segments, path.with_name(f"{path.name}.open"), path) if each.exists()]
        return b"".join(each.read_bytes() for each in present)

    def _committed(self) -> dict[str, bytes]:
        """Return what is in each output up to where the last checkpoint says that it ends."""
        names = {"dead_letters": self.dead, "sink": SCORES.get(self.name, "")}
        return {names[key]: self._cut(names[key], mark) for key, mark in self.state["outputs"].items()}

    def _cut(self, name: str, mark: dict[str, Any]) -> bytes:
        path = self.folder / name
        closed = [path.with_name(f"{path.stem}-{number:08}{path.suffix}") for number in range(1, mark["segment"])]
        last = (path.with_name(f"{path.name}.open") if closed else path).read_bytes()
        assert 0 < mark["length"] <= len(last)
        return b"".join(each.read_bytes() for each in closed) + last[: mark["length"]]


@pytest.mark.parametrize("name", ENDS)
def test_what_was_left_can_be_looked_at(tmp_path: Path, name: str) -> None:
    left = Left(name, tmp_path)
    assert [run["why"] for run in left.runs] == ENDS[name]
    assert left.state["last_run"] == left.runs[-1]
    assert left.acked > 0
    check_commands(left)


@pytest.mark.slow
def test_a_followed_log_with_running_statistics_into_segments(tmp_path: Path) -> None:
    left = Left("followed", tmp_path)
    torn = lines(180, 1)[0]
    log = left.folder / "log/app.log"
    assert log.read_bytes().endswith(b"\n" + torn[:9])
    with left.running() as daemon:
        left.append("log/app.log", ended([torn[9:], *lines(181, 39)]))
        finish(daemon, 220 - left.acked)
    records = [*log.with_name("app.log.1").read_bytes().splitlines(), *log.read_bytes().splitlines()]
    assert records == lines(0, 220)
    check_records(left, jsonl(left.written(SCORES["followed"])), [records], is_running=True)
    check_went_on(left, daemon.report)


@pytest.mark.slow
def test_spools_into_an_arrow_stream(tmp_path: Path) -> None:
    left = Left("spooled", tmp_path)
    sent = {path.stem: path.read_bytes().splitlines() for path in (left.folder / "sent").iterdir()}
    web, wire = [*sent["web-1"], *sent["web-2"], *sent["web-3"]], sent["wire"]
    assert left.acked == 90
    with left.running() as daemon:
        assert post(daemon, "key-1", sent["web-1"]) == (200, {"received": 40})
        assert post(daemon, "key-2", sent["web-2"]) == (200, {"received": 30})
        assert post(daemon, "key-1", sent["web-2"])[0] == 422
        assert post(daemon, "key-4", lines(80, 15)) == (200, {"received": 15})
        daemon.send("wire", ended(lines(1070, 10)))
        finish(daemon, len(web) + len(wire) - left.acked + 25)
    assert daemon.report["records"]["received"] + daemon.report["records"]["recovered"] == 85
    scores = ipc.open_stream(left.written(SCORES["spooled"])).read_all()
    found = list(zip(scores["id"].to_pylist(), scores["score"].to_pylist(), strict=True))
    check_records(left, found, [[*web, *lines(80, 15)], [*wire, *lines(1070, 10)]])
    check_went_on(left, daemon.report)


@pytest.mark.slow
def test_planned_batches_into_a_server(tmp_path: Path) -> None:
    left = Left("posted", tmp_path)
    sent, planned = (requests_in(left.folder / f"{name}.jsonl") for name in ("sent", "planned"))
    with Server() as server:
        server.answer(1000)
        option = f"sink.server.url=http://127.0.0.1:{server.port}/"
        with left.running("--set", option) as daemon:
            assert daemon.wait() == 0, daemon.rest()
    # Planned batches come under their ids and hold what was planned; nothing comes before, between or after them twice.
    assert server.read[: len(planned)] == planned
    unanswered, before = sent[-1], dict(sent)
    assert unanswered in planned
    again = {id: body for id, body in planned if id in before}
    assert len(again) > 1
    assert again.items() <= before.items()

    once = {**before, **dict(server.read)}
    assert len(dict(server.read)) == len(server.read)
    folder = left.folder / "in"
    parts = [*gzip.decompress((folder / "a.jsonl.gz").read_bytes()).splitlines(), *lines_in(folder / "b.jsonl")]
    rows = [json.dumps(row, separators=(",", ":")).encode() for row in pq.read_table(folder / "c.parquet").to_pylist()]
    in_order = [once[id] for id in sorted(once, key=lambda id: int(id.rpartition("-")[2]))]
    check_records(left, jsonl(b"".join(in_order)), [parts, rows])
    check_went_on(left, daemon.report, "--set", option)


@pytest.mark.slow
def test_length_prefixed_records_into_gzip(tmp_path: Path) -> None:
    left = Left("packed", tmp_path)
    assert (left.folder / "in.bin").read_bytes() == prefixed(lines(0, 100))
    with left.running() as daemon:
        left.append("in.bin", prefixed(lines(100, 30)))
        finish(daemon, 130 - left.acked)
    check_records(left, jsonl(gzip.decompress(left.written(SCORES["packed"]))), [lines(0, 130)])
    check_went_on(left, daemon.report)


@pytest.mark.slow
def test_csv_that_was_rotated_since_into_one_file(tmp_path: Path) -> None:
    left = Left("stopped", tmp_path)
    header, *old = lines_in(left.folder / "log/rows.csv.1")
    _, *new = lines_in(left.folder / "log/rows.csv")
    assert (header, len(old), len(new)) == (b"id,a,b", 80, 20)
    with left.running() as daemon:
        finish(daemon, 100 - left.acked)
    check_records(left, jsonl(left.written(SCORES["stopped"])), [old, new])
    check_went_on(left, daemon.report)


def finish(daemon: Daemon, records: int) -> None:
    """Stop a daemon once a checkpoint covers so many records of this run."""
    until_acked(daemon, records)
    assert daemon.stop() == 0, daemon.rest()
    counts = daemon.report["records"]
    assert counts["scored"] + counts["dead_lettered"] == records


def check_records(
    left: Left, scores: Sequence[Score], streams: Sequence[Sequence[bytes]], *, is_running: bool = False
) -> None:
    """Check that each record of the streams has its score, or its dead letter, once and in the order of its stream."""
    letters = [record_of(json.loads(line)) for line in left.written(left.dead).splitlines()]
    for stream in streams:
        expected, dead = expected_of(stream, is_running=is_running)
        ids = {id for id, _ in expected}
        assert [each for each in scores if each[0] in ids] == expected
        assert [each for each in letters if each in dead] == dead
    assert len(scores) + len(letters) == sum(len(stream) for stream in streams)


def check_went_on(left: Left, report: dict[str, Any], *options: str) -> None:
    """Check what state and files say after a run with these options."""
    assert report["ended"] == ("input_ended" if left.name == "posted" else "stopped")
    assert is_balanced(report["records"])
    assert report["records"]["unacked"] == 0
    for name, data in left.committed.items():
        assert left.written(name).startswith(data), f"{name}: what a checkpoint covered has changed"
    *earlier, last = left.told("runs", "list", *options)
    assert earlier == left.runs
    assert last["run"] == report["run"]
    check_commands(left, last, *options)


def check_commands(left: Left, last: dict[str, Any] | None = None, *options: str) -> None:
    """Check what commands say of the runs of an earlier version, and of the last one, which had these options."""
    assert left.told("audit", *options)["is_right"]
    for run in left.runs:
        check_run(left, run)
    if last is not None:
        check_run(left, last, *options)
    manifests = [left.told("runs", "show", run["run"]) for run in (*left.runs, last) if run is not None]
    # The digest leaves out the folder that the config lies in. A version that knows more keys has another one for the
    # same file; `runs verify` then reads the recorded config, whose paths lead to where the fixture was made: such a
    # version needs a fixture that is run where it was made, or one of its own.
    if not options:
        assert len({each["config_digest"] for each in manifests}) == 1
    assert len({each["model"]["sha256"] for each in manifests}) == 1
    letters = left.told("dead-letters", "list", *options)
    assert len(letters) == sum(run["counts"]["dead_lettered"] for run in (*left.runs, last) if run is not None)
    assert left.told("state", "show", *options)["last_run"] == (last or left.runs[-1])


def check_run(left: Left, run: dict[str, Any], *options: str) -> None:
    """Check that a run can be shown, and verifies with no change of config, model, input or output."""
    assert left.told("runs", "show", run["run"], *options)["counts"]["scored"] == run["counts"]["scored"]
    found = left.told("runs", "verify", run["run"], *options)
    assert (found["verdict"], found["totals"]) == ("agrees", {}), found
    batches, same, skipped = (found["counts"].get(f"batches{name}", 0) for name in ("", "_same", "_skipped"))
    # What came over a socket was in its spool only until it was acked.
    assert (same, skipped) == ((0, batches) if left.name == "spooled" else (batches, 0)), found


def expected_of(stream: Sequence[bytes], *, is_running: bool) -> tuple[list[Score], list[bytes]]:
    """Return the scores of a stream, and the records of it that can't be scored."""
    read = [(record, *parsed(record)) for record in stream]
    good = [(id, x) for _, id, x in read if x is not None]
    x = np.array([x for _, x in good])
    scores = (running_standardised(x) if is_running else x) @ np.array(WEIGHTS) + BIAS
    ids = [id for id, _ in good]
    return list(zip(ids, scores.tolist(), strict=True)), [record for record, _, x in read if x is None]


def parsed(record: bytes) -> tuple[int, list[float] | None]:
    """Return id and features of a record, JSON or a row of CSV; None for features that can't be scored."""
    try:
        if record.startswith(b"{"):
            row = json.loads(record)
            id, x = row["id"], row["x"]
        else:
            id, *x = record.decode().split(",")
        return int(id), [float(x[0]), float(x[1])]
    except (ValueError, LookupError, TypeError):
        return -1, None


def running_standardised(x: Floats) -> Floats:
    """Return each row standardised by mean and deviation of all rows up to and with it, all sums in their order."""
    wide = x - x[0]
    count = np.arange(1.0, len(x) + 1)[:, np.newaxis]
    total, squares = np.cumsum(wide, axis=0), np.cumsum(np.square(wide), axis=0)
    mean = total / count
    scale = np.sqrt(np.maximum((squares - total * mean) / count, 0.0))
    scale[scale == 0.0] = 1.0
    standardised: Floats = (wide - mean) / scale
    return standardised


def jsonl(data: bytes) -> list[Score]:
    """Return id and score of each line. Ids of CSV are texts."""
    return [(int(row["id"]), row["score"]) for row in map(json.loads, data.splitlines())]


def lines_in(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines()


def requests_in(path: Path) -> list[tuple[str, bytes]]:
    """Return id and body of each request of a log."""
    return [(each["id"], each["body"].encode()) for each in map(json.loads, lines_in(path))]


def record_of(letter: dict[str, Any]) -> bytes:
    """Return the record of a dead letter, byte for byte."""
    if "record" in letter:
        text: str = letter["record"]
        return text.encode()
    return b64decode(letter["record_base64"])


def post(daemon: Daemon, key: str, records: Sequence[bytes]) -> tuple[int, dict[str, Any]]:
    """Post records under an idempotency key; return status and body of the answer."""
    host, port = daemon.address("web")
    request = urllib.request.Request(f"http://{host}:{port}/records", ended(records), {"Idempotency-Key": key})
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE_SECONDS) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)
