"""`streambatch state` as a user has it: what it prints, what it forgets, when it refuses."""

import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from streambatch.cli import main
from streambatch.core.chunks import Partition
from streambatch.storage.folder import StateFolder
from tests.durability.stores import READINGS, checkpoint, opened, run_start

CONFIG = """
    name = "rides"
    state_dir = "state"
    [source.in]
    type = "file"
    path = "in.jsonl"
    [record]
    features = "x"
    shape = [2]
    [model]
    type = "linear"
    path = "model.npz"
    [sink.scores]
    type = "file"
    path = "out.jsonl"
    """


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a config and the state of two sources, one of which the config no longer has."""
    np.savez(tmp_path / "model.npz", weights=[1.0, 10.0], bias=0.5)
    (tmp_path / "pipeline.toml").write_text(CONFIG)
    with opened(tmp_path / "state") as store:
        store.begin_run(run_start("r1", 0.0, {**READINGS, "gone": {"format": "csv"}}))
        store.commit(checkpoint(1.5, [0, 1, 2]))
        gone = Partition("gone", os.fsdecode(b"b\xff"))
        store.commit(checkpoint(2.5, [], partitions={gone: checkpoint(0, [0]).partitions[Partition("in", "a.jsonl")]}))
        store.end_run("r1", "failed", "sink scores: gone", 3, {})
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("STREAMBATCH_")]:
        monkeypatch.delenv(name)
    return tmp_path


def streambatch(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Run a command. Returns exit code, stdout and stderr."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["streambatch", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
    assert isinstance(ended.value.code, int)
    return (ended.value.code, *capsys.readouterr())


def known(folder: Path) -> dict[str, list[str]]:
    """Return the partitions that the state has, by source."""
    with opened(folder / "state") as store:
        state = store.load()
        return {source: list(state.partitions.get(source, {})) for source in state.readings}


def test_show(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = streambatch(capsys, "state", "show", "pipeline.toml")
    assert (code, err) == (0, "")
    assert re.search(rf"^state +{folder}/state$", out, re.M)
    assert re.search(r"^checkpoint +1970-01-01T00:00:02\.500Z$", out, re.M)
    assert re.search(r"^last run +r1: failed, sink scores: gone$", out, re.M)
    assert re.search(r"^source +in: 1 partitions, 0 scored, 0 dead$", out, re.M)
    assert re.search(r"^ +a\.jsonl: position 300, 30 records, inode 7, path a\.jsonl$", out, re.M)
    assert re.search(r"^source +gone: 1 partitions, not in the config any more$", out, re.M)
    assert re.search(r"^output +scores: segment 1, length 0$", out, re.M)


def test_show_as_json_while_it_is_held(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with StateFolder(folder / "state"):
        code, out, _ = streambatch(capsys, "state", "show", "pipeline.toml", "--json")
    shown = json.loads(out)
    assert code == 0
    assert shown["held_by"] == str(os.getpid())
    assert shown["checkpointed"] == "1970-01-01T00:00:02.500Z"
    assert shown["sources"]["in"]["reading"] == READINGS["in"]
    assert shown["sources"]["in"]["partitions"]["a.jsonl"] == {
        "position": 300,
        "read_to": 350,
        "notes": {"inode": 7, "path": "a.jsonl"},
        "records": 30,
        "digest": "e" * 64,
    }
    assert list(shown["sources"]["gone"]["partitions"]) == [os.fsdecode(b"b\xff")]
    assert shown["outputs"] == {"scores": {"segment": 1, "length": 0}}
    assert (shown["last_run"]["run"], shown["last_run"]["why"], shown["next_batch"]) == ("r1", "failed", 3)


@pytest.mark.parametrize("command", [["show"], ["show", "--json"], ["reset"], ["reset", "--source", "in"]])
def test_without_state(folder: Path, capsys: pytest.CaptureFixture[str], command: list[str]) -> None:
    code, out, err = streambatch(capsys, "state", *command, "pipeline.toml", "--set", "state_dir=none")
    assert (code, err) == (0, "")
    assert out == "null\n" if "--json" in command else "none yet" in out
    assert not (folder / "none").exists()


def test_reset_of_one_source(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = streambatch(capsys, "state", "reset", "pipeline.toml", "--source", "in", "--yes")
    assert (code, err) == (0, "")
    assert out == "forgotten: how far source in has come; the next run reads it from the beginning\n"
    assert known(folder) == {"gone": [os.fsdecode(b"b\xff")]}


def test_reset_of_everything(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = streambatch(capsys, "state", "reset", "pipeline.toml", "--yes")
    assert code == 0
    assert "the next run reads everything from the beginning" in out
    assert known(folder) == {}


def test_reset_asks_first(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = known(folder)
    code, out, err = streambatch(capsys, "state", "reset", "pipeline.toml")
    assert (code, out) == (2, "")
    assert "--yes is needed to forget how far all sources and outputs have come" in err
    assert known(folder) == before


@pytest.mark.slow
@pytest.mark.parametrize(("answer", "code"), [(b"n\n", 1), (b"y\n", 0)])
def test_reset_asks_on_a_terminal(folder: Path, answer: bytes, code: int) -> None:
    leader, follower = pty.openpty()
    command = [sys.executable, "-m", "streambatch", "state", "reset", "pipeline.toml"]
    before = known(folder)
    os.write(leader, answer)
    done = subprocess.run(command, stdin=follower, capture_output=True, text=True, timeout=30)
    os.close(leader)
    os.close(follower)
    assert done.returncode == code
    assert "What was read will be read again. [y/N]" in done.stderr
    assert known(folder) == ({} if code == 0 else before)


def test_reset_of_a_source_without_state(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = streambatch(capsys, "state", "reset", "pipeline.toml", "--source", "live")
    assert code == 2
    assert err.endswith("found no source live; those with state: gone, in\n")


def test_reset_of_what_is_held(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = known(folder)
    with StateFolder(folder / "state"):
        code, out, err = streambatch(capsys, "state", "reset", "pipeline.toml", "--yes")
    assert (code, out) == (2, "")
    assert f"is held by process {os.getpid()}; stop that" in err
    assert known(folder) == before


def test_a_damaged_state_is_not_shown(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = folder / "state/state.sqlite3"
    path.write_bytes(path.read_bytes()[:9000])
    code, out, err = streambatch(capsys, "state", "show", "pipeline.toml")
    assert (code, out) == (2, "")
    assert err.startswith("error: state ")
    assert path.exists()
