"""The starter config: it checks, runs, runs again, and is never written over anything."""

import json
from pathlib import Path

import pytest

from streambatch.cli.init import BROKEN_EVERY, RECORDS, write_starter
from streambatch.core.errors import ConfigError
from tests.cli.test_cli import process
from tests.e2e.running import scores_in


def run(folder: Path, *arguments: str) -> str:
    done = process(folder, *arguments, STREAMBATCH_HTTP__LISTEN="off")
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_it_runs_as_it_stands_and_once_more(tmp_path: Path) -> None:
    said = run(tmp_path, "init", "x")
    folder = tmp_path / "x"
    assert [path.name for path in sorted(folder.iterdir())] == ["model.npz", "pipeline.toml", "rides.jsonl"]
    assert [line.strip() for line in said.splitlines()[1:]] == [
        "cd x",
        "streambatch check pipeline.toml --sample 3",
        "streambatch run pipeline.toml",
    ]
    sample = [json.loads(line) for line in run(folder, "check", "pipeline.toml", "--sample", "3").splitlines()[-3:]]
    run(folder, "run", "pipeline.toml")
    first = scores_in(folder / "scores.jsonl")
    assert first[:3] == sample
    assert len(first) == RECORDS - RECORDS // BROKEN_EVERY
    assert all(3 < score["score"] < 150 for score in first), "fares that no taxi has"
    run(folder, "run", "pipeline.toml")
    assert scores_in(folder / "scores.jsonl") == first
    assert [letter["reason"] for letter in scores_in(folder / "dead.jsonl")] == ["invalid_json", "missing_field"]


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "pipeline.toml").write_text("mine")
    (tmp_path / "rides.jsonl").write_text("mine too")
    done = process(tmp_path, "init")
    assert done.returncode == 2
    assert done.stderr == (
        "error: .: found pipeline.toml and rides.jsonl; allowed: a folder without, since none is replaced\n"
    )
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "pipeline.toml": "mine",
        "rides.jsonl": "mine too",
    }


def test_a_folder_that_can_not_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="a folder that can be made and written"):
        write_starter(tmp_path / "file" / "x")
