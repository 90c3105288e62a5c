"""What a whole first batch that fails means: a wrong model, unless this very model is known to score."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import anyio
import pytest

import streambatch as sb
from streambatch.core.errors import ModelError
from streambatch.core.report import RunReport
from streambatch.core.types import FloatArray
from streambatch.durability.manifest import Provenance
from tests.e2e.running import Daemon, running, scores_in

SCHEMA = sb.RecordSchema(id="id", features="x", shape=(1,), dtype="float64")
POISON = 13.0


class Picky:
    """Can't take one record; any other is its own score. digest: as models have it that come from a file."""

    def __init__(self, digest: str | None = None) -> None:
        if digest is not None:
            self.digest = digest

    def score(self, x: FloatArray) -> FloatArray:
        if POISON in x[:, 0].tolist():
            raise ValueError("thirteen")
        return x[:, 0]


class Place:
    """A file that grows between runs of one pipeline."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.input, self.scores = folder, folder / "in.jsonl", folder / "scores.jsonl"

    def add(self, *numbers: float) -> None:
        with self.input.open("a") as file:
            file.writelines(json.dumps({"id": int(n), "x": [n]}) + "\n" for n in numbers)

    def pipeline(self, model: Any, **options: Any) -> sb.Pipeline:
        defaults: dict[str, Any] = {"state_dir": self.folder / "state", "batch": sb.BatchPolicy(max_records=1)}
        return sb.Pipeline(
            sources=[sb.FileSource(str(self.input))],
            record=SCHEMA,
            model=model,
            sink=sb.FileSink(str(self.scores)),
            dead_letter=sb.DeadLetterOptions(str(self.folder / "dead.jsonl"), stop_at=1.0),
            **{**defaults, **options},
        )

    def run(self, model: Any, **options: Any) -> RunReport:
        return anyio.run(self.pipeline(model, **options).run)

    def check_one_died(self, report: RunReport, scored: int) -> None:
        assert (report.ended, report.records["scored"], report.records["dead_lettered"]) == ("input_ended", scored, 1)
        (letter,) = scores_in(self.folder / "dead.jsonl")
        assert (letter["stage"], letter["reason"]) == ("score", "model_error")
        assert json.loads(letter["record"])["id"] == POISON


def of(digest: str | None) -> dict[str, Any]:
    return {"provenance": Provenance(model={"type": "test", "sha256": digest})}


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_a_lone_poison_record_after_a_restart_is_one_dead_letter(place: Place) -> None:
    place.add(1, 2, 3)
    assert place.run(Picky(), **of("a")).records["scored"] == 3
    place.add(POISON, 4, 5)
    place.check_one_died(place.run(Picky(), **of("a")), 2)
    assert [line["id"] for line in scores_in(place.scores)] == [1, 2, 3, 4, 5]


def test_so_it_is_for_a_model_in_a_program_that_has_a_digest_of_its_own(place: Place) -> None:
    place.add(1)
    place.run(Picky("a"))
    place.add(POISON, 2)
    with pytest.raises(ModelError, match="failed on the whole first batch: ValueError: thirteen"):
        place.run(Picky("b"))
    place.check_one_died(place.run(Picky("a")), 1)


@pytest.mark.parametrize("digest", ["b", None])
def test_another_model_or_one_that_can_not_be_told_from_another_stops_the_run(place: Place, digest: str | None) -> None:
    place.add(1, 2)
    place.run(Picky(), **of("a" if digest else None))
    place.add(POISON, 3)
    for _ in range(2):
        with pytest.raises(ModelError, match="failed on the whole first batch: ValueError: thirteen"):
            place.run(Picky(), **of(digest))
    assert not (place.folder / "dead.jsonl").exists() or not scores_in(place.folder / "dead.jsonl")


def test_a_model_that_scored_is_known_though_runs_came_between_that_did_not(place: Place) -> None:
    place.add(1)
    place.run(Picky(), **of("a"))
    place.run(Picky(), **of("a"))
    place.add(POISON, 2)
    with pytest.raises(ModelError):
        place.run(Picky(), **of("b"))
    place.check_one_died(place.run(Picky(), **of("a")), 1)


def test_a_model_that_never_scored_is_not_known(place: Place) -> None:
    place.input.write_text("not json\n")
    assert place.run(Picky(), **of("a")).records["dead_lettered"] == 1
    place.add(POISON)
    with pytest.raises(ModelError, match="whole first batch"):
        place.run(Picky(), **of("a"))


def test_without_a_state_folder_nothing_is_known(place: Place) -> None:
    place.add(POISON, 1)
    for _ in range(2):
        with pytest.raises(ModelError, match="whole first batch"):
            place.run(Picky("a"), state_dir=None, **of("a"))


MODEL = """
def score(x):
    if 13.0 in x[:, 0].tolist():
        raise ValueError("thirteen")
    return x[:, 0]
"""
CONFIG = """
    name = "restarted"
    state_dir = "state"
    [source.lines]
    type = "file"
    path = "in.jsonl"
    follow = true
    [record]
    id = "id"
    features = "x"
    shape = [1]
    [model]
    type = "python"
    path = "picky:score"
    [sink.scores]
    type = "file"
    path = "scores.jsonl"
    [dead_letter]
    path = "dead.jsonl"
    [delivery]
    checkpoint_interval = "50ms"
    [http]
    listen = "off"
    """


@pytest.mark.slow
def test_a_followed_file_whose_next_record_is_poison_does_not_keep_a_daemon_from_starting(place: Place) -> None:
    folder = place.folder

    def holds(name: str, lines: int) -> bool:
        return (folder / name).exists() and len(scores_in(folder / name)) == lines

    def wait_for(daemon: Daemon, name: str, lines: int) -> None:
        daemon.until(lambda: holds(name, lines), f"{lines} lines in {name}")

    (folder / "picky.py").write_text(MODEL)
    place.add(1, 2)
    with running(folder, CONFIG) as daemon:
        wait_for(daemon, "scores.jsonl", 2)
        assert daemon.stop() == 0
    place.add(POISON)
    (folder / "picky.py").write_text(MODEL + "# another model\n")
    with running(folder, CONFIG) as daemon:
        assert daemon.wait() == 1
        assert "failed on the whole first batch" in daemon.event("failed")["error"]
    (folder / "picky.py").write_text(MODEL)
    with running(folder, CONFIG) as daemon:
        wait_for(daemon, "dead.jsonl", 1)
        place.add(3)
        wait_for(daemon, "scores.jsonl", 3)
        assert daemon.stop() == 0
