"""`dead-letters`: they are listed and counted; a replay scores each once, whatever happens to it."""

import json
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from streambatch.storage.folder import StateFolder
from tests.ops.traced import Traced, rows

MENDED = ("--set", "record.missing=nan", "--set", 'preprocess=[{type="impute",value=0}]')
"""What lets records score that lack a feature."""


def listed(traced: Traced, *options: str) -> list[dict[str, Any]]:
    code, out = traced.command("dead-letters", "list", "--json", *options)
    assert code == 0
    return [json.loads(line) for line in out.splitlines()]


def replayed(traced: Traced, *options: str) -> dict[str, Any]:
    code, out = traced.command("dead-letters", "replay", "--json", *options)
    assert code == 0, out
    found: dict[str, Any] = json.loads(out)
    return found


def scored_ids(traced: Traced, name: str = "scores.jsonl") -> list[Any]:
    return [json.loads(line)["id"] for line in (traced.folder / "out" / name).read_bytes().splitlines()]


@pytest.fixture
def mendable(traced: Traced) -> Traced:
    """A pipeline of which some records died that score once missing features are filled in."""
    traced.configure()
    traced.append("a.jsonl", rows(0, 100))
    with (traced.folder / "in" / "a.jsonl").open("a") as file:
        file.write("no JSON\n")
    traced.run()
    return traced


def test_list(mendable: Traced) -> None:
    assert len(listed(mendable)) == 10
    assert [each["reason"] for each in listed(mendable, "--stage", "decode")] == ["invalid_json"]
    assert len(listed(mendable, "--reason", "missing_field", "--source", "in")) == 9
    assert all(each["replayed"] is False for each in listed(mendable))
    code, out = mendable.command("dead-letters", "list", "--limit", "2")
    assert code == 0
    assert "... and 8 more" in out
    assert "validate    missing_field     9" in out
    code, out = mendable.command("dead-letters", "list", "--reason", "boredom")
    assert (code, "--reason: found 'boredom'; allowed: oversize, cut_off" in out) == (2, True)


@pytest.mark.parametrize("command", ["list", "replay"])
def test_a_source_or_a_run_that_there_is_not(mendable: Traced, command: str) -> None:
    (run,) = mendable.runs()
    code, out = mendable.command("dead-letters", command, "--source", "nope", "--run", "latest")
    assert code == 2
    assert out.splitlines() == [
        "error: --source: found 'nope'; allowed: in, in.replay",
        f"error: --run: found 'latest'; allowed: {run}",
    ]
    assert not any(mendable.folder.glob("**/*.replayed.jsonl"))


def test_a_source_that_left_the_config_can_still_be_asked_for(mendable: Traced) -> None:
    (run,) = mendable.runs()
    replayed(mendable, "--stage", "decode")
    config = mendable.folder / "pipeline.toml"
    config.write_text(config.read_text().replace("source.in.", "source.new."))
    (state,) = (mendable.folder / "state").glob("state.sqlite3")
    for _ in ("by the state", "by the letters"):
        assert len(listed(mendable, "--source", "in", "--run", run)) == 10
        assert len(listed(mendable, "--source", "in.replay")) == 1
        assert listed(mendable, "--source", "new.replay") == []
        code, out = mendable.command("dead-letters", "list", "--source", "nope")
        assert (code, "allowed: in, in.replay, new, new.replay\n" in out) == (2, True)
        state.unlink(missing_ok=True)


def test_a_right_name_without_letters_finds_none(traced: Traced) -> None:
    traced.configure()
    assert "error: --run: found 'a'; allowed: none yet" in traced.command("dead-letters", "list", "--run", "a")[1]
    traced.append("a.jsonl", rows(0, 5))
    traced.run()
    (run,) = traced.runs()
    for wanted in (("--source", "in"), ("--source", "in.replay"), ("--run", run)):
        assert traced.command("dead-letters", "list", *wanted) == (0, "none\n")
        assert traced.command("dead-letters", "replay", *wanted) == (0, "nothing to replay\n")


def test_replay_after_a_fix(mendable: Traced) -> None:
    dead = [record["id"] for record in rows(0, 100) if "b" not in record]
    done = replayed(mendable, *MENDED)
    records = done["report"]["records"]
    assert (done["chosen"], records["scored"], records["dead_lettered"]) == (10, 9, 1)
    assert scored_ids(mendable)[-9:] == dead
    assert [each["replayed"] for each in listed(mendable)] == [True] * 10 + [False]
    assert mendable.audited()["is_right"], mendable.command("audit")[1]
    assert mendable.verified("latest", *MENDED)["verdict"] == "agrees"
    assert replayed(mendable, "--reason", "missing_field")["report"] is None
    again = replayed(mendable)
    assert (again["chosen"], again["report"]["records"]["dead_lettered"]) == (1, 1)
    mendable.append("a.jsonl", rows(100, 10))
    mendable.run()
    assert sorted(scored_ids(mendable)) == [record["id"] for record in rows(0, 110) if record["id"] != 109]
    assert mendable.audited()["is_right"], mendable.command("audit")[1]


def test_replay_of_some(mendable: Traced) -> None:
    assert replayed(mendable, "--stage", "decode")["chosen"] == 1
    assert replayed(mendable, "--reason", "missing_field", *MENDED)["report"]["records"]["scored"] == 9


def test_records_without_an_id_keep_the_name_they_had(traced: Traced) -> None:
    traced.configure(record__carry='["id"]')
    config = traced.folder / "pipeline.toml"
    config.write_text(config.read_text().replace('record.id = "id"\n', "").replace('carry = ["id"]', 'carry = ["a"]'))
    traced.append("a.jsonl", rows(0, 30))
    traced.run()
    wanted = [f"{letter['partition']}:{letter['position']}" for letter in listed(traced)]
    replayed(traced)
    replayed(traced, *MENDED)
    assert scored_ids(traced)[-2:] == wanted


@pytest.mark.parametrize("format", ["csv", "length_prefixed", "parquet"])
def test_other_formats(traced: Traced, format: str) -> None:
    traced.configure(source__in__format=f'"{format}"')
    path = traced.folder / "in" / f"a.{format}"
    if format == "csv":
        traced.append(path.name, rows(0, 30), fields=("id", "a", "b"))
    elif format == "parquet":
        pq.write_table(pa.Table.from_pylist([{"b": None, **record} for record in rows(0, 30)]), path)
    else:
        bodies = [json.dumps(record).encode() for record in rows(0, 30)]
        path.write_bytes(b"".join(len(body).to_bytes(4, "big") + body for body in bodies))
    traced.run()
    done = replayed(traced, *MENDED)
    assert (done["chosen"], done["report"]["records"]["scored"]) == (2, 2)
    assert [str(each) for each in scored_ids(traced)[-2:]] == ["10", "21"]
    assert traced.audited()["is_right"]


def test_what_cannot_be_replayed_is_said(traced: Traced) -> None:
    traced.configure(source__in__max_record_bytes="100000")
    (traced.folder / "in" / "a.jsonl").write_text(json.dumps({"id": "x" * 200_000}) + "\n")
    traced.run()
    done = replayed(traced)
    assert (done["chosen"], done["left_out"]) == (0, {"only the beginning of the record was kept": 1})


def test_nothing_is_replayed_while_the_pipeline_runs(mendable: Traced) -> None:
    with StateFolder(mendable.folder / "state"):
        code, out = mendable.command("dead-letters", "replay")
    assert (code, "is held by process" in out) == (2, True)
    assert not any(mendable.folder.glob("**/*.replayed.jsonl"))


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["chosen", "begun", "half done"])
def test_a_kill_in_the_middle_neither_loses_nor_doubles(traced: Traced, moment: str) -> None:
    traced.configure(delivery__checkpoint_interval='"5ms"')
    traced.append("a.jsonl", [{"id": at, "a": 1.0} for at in range(30_000)])
    traced.run()
    script = traced.folder / "kill.py"
    script.write_text(KILLED.format(moment=moment))
    line = [sys.executable, str(script), "dead-letters", "replay", "pipeline.toml", *MENDED]
    done = subprocess.run(line, cwd=traced.folder, capture_output=True, text=True, timeout=50)
    assert done.returncode == -9, done.stderr
    done_before = _replayed(traced.folder / "state" / "state.sqlite3")
    assert (done_before > 0) == (moment == "half done")
    assert traced.audited()["is_right"], traced.command("audit")[1]
    rest = replayed(traced, *MENDED)
    assert (rest["chosen"], rest["pending"]) == (0, 30_000 - done_before)
    assert scored_ids(traced) == list(range(30_000))
    assert traced.audited()["is_right"], traced.command("audit")[1]
    assert all(each["replayed"] for each in listed(traced))


KILLED = """
import os, signal
from streambatch.cli import main
from streambatch.ops import replay
from streambatch.pipeline.pipeline import Pipeline
from streambatch.durability.store.store import StateStore

def kill(*_):
    os.kill(os.getpid(), signal.SIGKILL)

commit = StateStore.commit

def kill_once_some_is_scored(store, checkpoint):
    commit(store, checkpoint)
    if checkpoint.journal:
        kill()

moment = "{moment}"
if moment == "chosen":
    replay._run = kill
elif moment == "begun":
    StateStore.commit = lambda store, checkpoint: kill() if checkpoint.journal else commit(store, checkpoint)
else:
    StateStore.commit = kill_once_some_is_scored
main()
"""


def _replayed(state: Path) -> int:
    with sqlite3.connect(state) as connection:
        rows = connection.execute("SELECT records FROM partitions WHERE source = 'in.replay'").fetchall()
    return int(sum(records for (records,) in rows))
