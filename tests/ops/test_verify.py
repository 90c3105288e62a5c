"""`runs verify`: an untouched run agrees, whatever it read and wrote; whatever was touched since is named."""

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import ipc

from streambatch.config import config as configs
from streambatch.delivery.outbox import WRITE_SIZE
from tests.ops.traced import Traced, flip, rows

OUTPUTS: dict[str, dict[str, str]] = {
    "jsonl": {},
    "segments": {"sink__scores__rotate": '{ max_bytes = "1KiB" }'},
    "gzip": {"sink__scores__compression": '"gzip"', "sink__scores__rotate": '{ max_bytes = "1KiB" }'},
    "csv": {"sink__scores__format": '"csv"', "sink__scores__path": '"out/scores.csv"'},
    "arrow": {"sink__scores__format": '"arrow"', "sink__scores__path": '"out/scores.arrow"'},
    "parquet": {"sink__scores__format": '"parquet"', "sink__scores__path": '"out/scores.parquet"'},
}


@pytest.mark.parametrize("output", OUTPUTS)
def test_untouched_runs_agree(traced: Traced, output: str) -> None:
    traced.configure(**OUTPUTS[output])
    traced.append("a.jsonl", rows(0, 100))
    traced.append("b.jsonl", rows(100, 50))
    traced.run()
    traced.append("b.jsonl", rows(150, 30))
    traced.append("c.jsonl", rows(180, 40))
    traced.run()
    traced.check_all()
    first, second = (traced.verified(run)["counts"] for run in traced.runs())
    assert (first["records"], second["records"]) == (150, 70)
    assert first["scores_compared"] + second["scores_compared"] == len([r for r in rows(0, 220) if "b" in r])


@pytest.mark.parametrize("format", ["csv", "gzip", "parquet", "arrow", "blank lines", "unterminated"])
def test_all_that_can_be_read_can_be_verified(traced: Traced, format: str) -> None:
    records = [{"id": at, "a": at / 7, "b": 1.5 if at % 9 else None} for at in range(300)]
    folder = traced.folder / "in"
    traced.configure(**({"source__in__format": f'"{format}"'} if format in ("csv", "parquet", "arrow") else {}))
    if format == "csv":
        traced.append("a.csv", rows(0, 100), fields=("id", "a", "b"))
        traced.run()
        traced.append("a.csv", rows(100, 100), fields=("id", "a", "b"))
    elif format == "gzip":
        traced.append("a.jsonl.gz", rows(0, 100))
        traced.run()
        traced.append("a.jsonl.gz", rows(100, 100))
    elif format == "parquet":
        pq.write_table(pa.Table.from_pylist(records), folder / "a.parquet", row_group_size=64)
    elif format == "arrow":
        with ipc.new_stream(folder / "a.arrow", pa.Table.from_pylist(records).schema) as stream:
            stream.write_table(pa.Table.from_pylist(records), 33)
    else:
        gap = "\n\r\n\n" if format == "blank lines" else "\n"
        text = gap.join(json.dumps(record) for record in records[:150])
        (folder / "a.jsonl").write_text(f"\n{text}")
        traced.run()
        (folder / "a.jsonl").write_text(f"\n{text}\n{gap}{text}{gap}\n")
    traced.run()
    traced.check_all()
    assert all(each["status"] == "same" for each in traced.verified()["inputs"])


def test_running_statistics_begin_where_the_run_began(traced: Traced) -> None:
    traced.configure(preprocess='[{ type = "standardize", fit = "running" }]')
    traced.append("a.jsonl", rows(0, 100))
    traced.run()
    traced.append("a.jsonl", rows(100, 100))
    traced.run()
    traced.check_all()


def test_a_run_that_was_stopped_and_one_that_went_on(traced: Traced) -> None:
    traced.configure()
    traced.append("a.jsonl", rows(0, 30_000))
    first = traced.run("workers.executor=inline", until=lambda totals: totals["scored"] > 100)
    traced.run("workers.executor=inline")
    for run in traced.runs():
        found = traced.verified(run, "--set", "workers.executor=inline")
        assert found["verdict"] == "agrees", found
    assert first["ended"] == "stopped"
    assert traced.audited()["is_right"]


def test_a_file_is_found_again_whatever_it_is_called(traced: Traced) -> None:
    traced.configure()
    traced.append("a.jsonl", rows(0, 100))
    traced.append("b.jsonl", rows(100, 100))
    traced.run()
    folder = traced.folder / "in"
    (folder / "a.jsonl").rename(folder / "a.jsonl.1")
    (folder / "b.jsonl.2.gz").write_bytes(gzip.compress((folder / "b.jsonl").read_bytes()))
    (folder / "b.jsonl").unlink()
    found = traced.verified()
    assert found["verdict"] == "agrees", found
    assert [Path(each["path"]).name for each in found["inputs"]] == ["a.jsonl.1", "b.jsonl.2.gz"]


def test_a_file_that_is_gone_is_said_and_the_others_are_verified(traced: Traced) -> None:
    traced.configure()
    traced.append("a.jsonl", rows(0, 70))
    traced.append("b.jsonl", rows(70, 70))
    traced.run()
    (traced.folder / "in" / "a.jsonl").unlink()
    found = traced.verified()
    assert found["verdict"] == "agrees"
    assert [each["status"] for each in found["inputs"]] == ["gone", "same"]
    assert found["counts"]["batches_skipped"] == 10
    assert any("a.jsonl: it is there no longer" in note for note in found["notes"])


@pytest.mark.parametrize("offset", [0, 3000, 7000])
def test_one_flipped_input_byte(traced: Traced, offset: int) -> None:
    traced.configure()
    traced.append("a.jsonl", rows(0, 200))
    traced.append("b.jsonl", rows(200, 200))
    traced.run()
    path = traced.folder / "in" / "b.jsonl"
    flip(path, offset)
    found = traced.verified()
    assert found["totals"] == {"input": 1, "score": 1}
    changed, score = found["differences"]
    assert changed["where"].endswith("in/b.jsonl")
    wanted = next(r for r in map(json.loads, path.read_bytes().splitlines()) if r["id"] == score["id"])
    assert wanted != next(r for r in rows(200, 200) if r["id"] == score["id"])
    assert (score["source"], Path(score["partition"]).name) == ("in", "b.jsonl")
    assert json.loads(path.read_bytes()[: score["position"]].splitlines()[-1]) == wanted
    assert "verdict       differs" in traced.command("runs", "verify")[1]


def test_one_changed_weight(traced: Traced) -> None:
    traced.configure()
    traced.append("a.jsonl", rows(0, 100))
    traced.run()
    before = traced.verified()
    np.savez(traced.folder / "model.npz", weights=[1.5, -0.2501], bias=0.125)
    found = traced.verified()
    assert before["verdict"] == "agrees"
    assert found["differences"][0]["what"] == "model"
    assert found["differences"][0]["recorded"] != found["differences"][0]["found"]
    assert found["totals"]["score"] > 50


@pytest.mark.parametrize(
    ("override", "key", "recorded", "now"),
    [
        ("batch.max_records=8", "batch.max_records", 7, 8),
        ("record.missing=nan", "record.missing", "reject", "nan"),
        ('preprocess=[{type="clip",low=0,high=2}]', "preprocess[0].high", 1, 2),
        ("preprocess=[]", "preprocess[0].type", "clip", None),
        ("source.in.max_record_bytes=20", "source.in.max_record_bytes", 1 << 20, 20),
    ],
)
def test_one_changed_config_value(traced: Traced, override: str, key: str, recorded: Any, now: Any) -> None:
    traced.configure(preprocess='[{ type = "clip", low = 0, high = 1 }]')
    traced.append("a.jsonl", rows(0, 100))
    traced.run()
    assert traced.verified()["verdict"] == "agrees"
    found = traced.verified("latest", "--set", override)
    assert (key, recorded, now) in [(each["where"], each["recorded"], each["found"]) for each in found["differences"]]
    assert set(found["totals"]) == {"config"}  # scored again as recorded, it comes to the same
    assert found["counts"]["batches_same"] == found["counts"]["batches"]


def test_a_changed_output(traced: Traced) -> None:
    traced.configure()
    traced.append("a.jsonl", rows(0, 100))
    traced.run()
    path = traced.folder / "out" / "scores.jsonl"
    flip(path, 1500)
    (found,) = traced.verified()["differences"]
    line = next(line for line in path.read_text().splitlines() if json.loads(line)["id"] == found["id"])
    assert (found["what"], found["where"], found["recorded"]) == ("score", str(path), line)


@pytest.mark.parametrize("output", ["arrow", "parquet"])
def test_a_changed_table(traced: Traced, output: str) -> None:
    traced.configure(**OUTPUTS[output])
    traced.append("a.jsonl", rows(0, 100))
    traced.run()
    (path,) = (traced.folder / "out").iterdir()
    is_parquet = output == "parquet"
    table = pq.read_table(path) if is_parquet else ipc.open_stream(path.read_bytes()).read_all()
    scores = table["score"].to_pylist()
    scores[40] = np.nextafter(np.float32(scores[40]), np.float32(1e9))
    changed = table.set_column(1, table.schema.field("score"), pa.array(scores, table.schema.field("score").type))
    if is_parquet:
        pq.write_table(changed, path)
    else:
        with ipc.new_stream(path, changed.schema) as stream:
            stream.write_table(changed)
    (found,) = traced.verified()["differences"]
    assert (found["what"], found["id"]) == ("score", table["id"][40].as_py())


def test_a_changed_dead_letter(traced: Traced) -> None:
    traced.configure()
    traced.append("a.jsonl", rows(0, 40))
    traced.run()
    path = traced.folder / "state" / "dead_letters.jsonl"
    path.write_bytes(path.read_bytes().replace(b"missing_field", b"invalid_json", 1))
    (found,) = traced.verified()["differences"]
    assert (found["what"], found["recorded"], found["found"]) == (
        "dead_letter",
        "validate, invalid_json",
        "validate, missing_field",
    )


def test_a_segment_that_was_taken_away_is_said(traced: Traced) -> None:
    traced.configure(**OUTPUTS["segments"], batch__max_records="500")
    # More than one write may hold: batches that are written together are never split between segments.
    traced.append("a.jsonl", rows(0, 12_000))
    traced.run()
    segments = sorted((traced.folder / "out").iterdir())
    assert sum(segment.stat().st_size for segment in segments) > WRITE_SIZE
    taken = segments[1]
    taken.unlink()
    found = traced.verified()
    assert found["verdict"] == "agrees"
    assert any(f"{taken} is there no longer" in note for note in found["notes"])
    assert traced.audited()["is_right"]


def test_a_missing_output_differs(traced: Traced) -> None:
    traced.configure()
    traced.append("a.jsonl", rows(0, 30))
    traced.run()
    (traced.folder / "out" / "scores.jsonl").unlink()
    assert [each["what"] for each in traced.verified()["differences"]] == ["output"]
    assert not traced.audited()["is_right"]


def test_other_code_is_named(traced: Traced, monkeypatch: pytest.MonkeyPatch) -> None:
    traced.configure()
    traced.append("a.jsonl", rows(0, 30))
    traced.run()
    monkeypatch.setattr("streambatch.ops.differences.code_revision", lambda: "f" * 40)
    found = traced.verified()
    assert found["verdict"] == "agrees"
    assert found["code"]["revision"][1] == "f" * 40


def test_output_that_is_added_to_is_verified_from_where_it_begins(traced: Traced) -> None:
    traced.configure(sink__scores__if_exists='"append"')
    (traced.folder / "out").mkdir()
    (traced.folder / "out" / "scores.jsonl").write_text('{"id":"old","score":1.0}\n{"id":"unterminated"}')
    traced.append("a.jsonl", rows(0, 30))
    traced.run()
    traced.check_all()


def test_runs_are_listed_and_shown(traced: Traced) -> None:
    traced.configure()
    traced.append("a.jsonl", rows(0, 30))
    assert traced.command("runs", "list") == (0, "none yet\n")
    traced.run()
    (run,) = traced.runs()
    code, listed = traced.command("runs", "list")
    assert (code, listed.split()[0]) == (0, run)
    assert "28 scored, 2 dead, 0 unacked" in listed
    shown = traced.command("runs", "show", run)[1]
    assert f"run           {run} of rides" in shown
    manifest = json.loads(traced.command("runs", "show", "--json")[1])
    assert manifest["sources"]["in"]["partitions"][0]["records"] == 30
    for command in ("show", "verify"):
        code, said = traced.command("runs", command, "other")
        assert (code, "no run other" in said) == (2, True)


def test_a_moved_folder_is_the_same_config(traced: Traced, tmp_path: Path) -> None:
    traced.configure()
    traced.append("a.jsonl", rows(0, 30))
    traced.run()
    moved = tmp_path / "moved"
    moved.mkdir()
    for name in ("in", "out", "state", "pipeline.toml", "model.npz"):
        os.rename(tmp_path / name, moved / name)
    traced.folder = moved
    traced.check_all()


def test_options_that_the_recorded_code_did_not_know_are_no_change(traced: Traced) -> None:
    traced.configure()
    traced.append("a.jsonl", rows(0, 30))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("streambatch.config.config._plain", _without_dtype(configs._plain))
        traced.run()
    assert traced.verified()["verdict"] == "agrees"
    found = traced.verified("latest", "--set", "record.dtype=float64")
    assert [each["where"] for each in found["differences"]] == ["record.dtype"]


def _without_dtype(plain: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def older(value: Any) -> Any:
        found = plain(value)
        return {key: each for key, each in found.items() if key != "dtype"} if isinstance(found, dict) else found

    return older


@pytest.mark.slow
def test_batches_of_several_sources_keep_the_order_of_their_records(traced: Traced) -> None:
    traced.configure(source__other__type='"file"', source__other__path='"other/*"', batch__max_records="40000")
    (traced.folder / "other").mkdir()
    traced.append("a.jsonl", rows(0, 60_000))
    traced.append("../other/b.jsonl", rows(60_000, 60_000))
    traced.run()
    traced.check_all()


@pytest.mark.slow
def test_records_that_nobody_keeps(traced: Traced) -> None:
    traced.configure(source__live__type='"stdin"', sink__scores__type='"stdout"')
    config = traced.folder / "pipeline.toml"
    config.write_text(config.read_text().replace('sink.scores.path = "out/scores.jsonl"\n', ""))
    traced.append("a.jsonl", rows(0, 70))
    command = [sys.executable, "-m", "streambatch", "run", "pipeline.toml"]
    line = json.dumps(rows(100, 1)[0]).encode()
    done = subprocess.run(command, cwd=traced.folder, input=line, capture_output=True, timeout=50)
    assert done.returncode == 0, done.stderr
    found = traced.verified()
    assert found["verdict"] == "agrees"
    assert 0 < found["counts"]["batches_skipped"] < found["counts"]["batches"]
    assert any(note.startswith("source live keeps no records") for note in found["notes"])
    assert any(note.startswith("sink scores keeps no scores") for note in found["notes"])
    assert traced.audited()["is_right"], traced.command("audit")[1]
