"""The daemon as a process: how it starts, how it ends, what it leaves behind."""

import json
import shutil
import signal
import socket
from pathlib import Path

import numpy as np
import pytest

from tests.e2e.running import is_balanced, running, scores_in

CONFIG = """
    name = "rides"
    [source.rides_in]
    {source}
    [record]
    id = "id"
    features = "x"
    shape = [2]
    dtype = "float64"
    [batch]
    max_wait = "1ms"
    [model]
    {model}
    [sink.scores]
    type = "file"
    path = "out.jsonl"
    [http]
    listen = "{http}"
    """
pytestmark = pytest.mark.slow
FILE = 'type = "file"\npath = "in.jsonl"'
TCP = 'type = "tcp"\nlisten = "127.0.0.1:0"'
LINEAR = 'type = "linear"\npath = "model.npz"'
STUCK = """
import threading
def score(x):
    if x.any():
        threading.Event().wait()
    return x[:, 0]
"""
WRONG = """
def score(x):
    if x.any():
        raise RuntimeError("wrong model")
    return x[:, 0]
"""
LINES = b'{"id": 1, "x": [1, 2]}\n{"id": 2, "x": [3]}\n{"id": 3, "x": [3, 4]}\n'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    np.savez(tmp_path / "model.npz", weights=[1.0, 10.0], bias=0.5)
    (tmp_path / "in.jsonl").write_bytes(LINES)
    return tmp_path


def config(source: str = FILE, model: str = LINEAR, http: str = "off", more: str = "") -> str:
    return CONFIG.format(source=source, model=model, http=http) + more


def python_model(folder: Path, source: str) -> str:
    (folder / "scorer.py").write_text(source)
    return 'type = "python"\npath = "scorer:score"'


def test_to_the_end_of_the_input(folder: Path) -> None:
    with running(folder, config()) as daemon:
        assert daemon.wait() == 0
        report, log = daemon.report, daemon.rest()
    assert (report["ended"], report["error"], report["pipeline"]) == ("input_ended", None, "rides")
    assert (report["records"]["scored"], report["records"]["dead_lettered"]) == (2, 1)
    assert is_balanced(report["records"])
    assert scores_in(folder / "out.jsonl") == [{"id": 1, "score": 21.5}, {"id": 3, "score": 43.5}]
    assert [letter["reason"] for letter in scores_in(folder / ".streambatch/rides/dead_letters.jsonl")] == [
        "wrong_shape"
    ]
    assert log[0]["event"] == "starting"
    assert len(log[0]["digest"]) == 64
    assert (log[-1]["event"], log[-1]["scored"], log[-1]["dead_lettered"]) == ("stopped", 2, 1)
    assert [line["error"] for line in log if line["event"] == "dead_letters"]
    assert all("traceback" not in json.dumps(line).lower() for line in log)


def test_a_second_run_says_that_there_is_nothing_new(folder: Path) -> None:
    with running(folder, config()) as daemon:
        assert daemon.wait() == 0
        first = daemon.report["run"]
    with running(folder, config()) as daemon:
        assert daemon.wait() == 0
        assert daemon.event("nothing_new")["read_by"] == first
    assert len(scores_in(folder / "out.jsonl")) == 2


def test_the_report_is_replaced_as_a_whole(folder: Path) -> None:
    (folder / "report.json").write_text("old")
    with running(folder, config()) as daemon:
        assert daemon.wait() == 0
        assert daemon.report["ended"] == "input_ended"
    assert [path.name for path in folder.iterdir() if "report" in path.name] == ["report.json"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_gracefully(folder: Path, number: signal.Signals) -> None:
    with running(folder, config(TCP)) as daemon:
        daemon.send("rides_in", LINES)
        assert daemon.stop(number) == 0
        assert daemon.report["ended"] == "stopped"
        assert daemon.report["records"]["received"] == 3
        assert is_balanced(daemon.report["records"])
        assert daemon.report["records"]["unacked"] == 0
        daemon.event("stopping", signal=number.name)


def test_a_stop_before_anything_came(folder: Path) -> None:
    with running(folder, config(TCP)) as daemon:
        daemon.event("listening")
        assert daemon.stop() == 0
        assert daemon.report["records"]["received"] == 0


def test_a_second_signal_stops_hard(folder: Path) -> None:
    with running(folder, config(TCP, python_model(folder, STUCK), "127.0.0.1:0")) as daemon:
        daemon.send("rides_in", LINES)
        daemon.until(lambda: daemon.status()["inflight_batches"] == 1, "a batch is with the model")
        daemon.process.send_signal(signal.SIGTERM)
        daemon.event("stopping")
        assert daemon.stop() == 3
        assert daemon.report["ended"] == "stopped"
        assert daemon.report["records"]["unacked"] == 3
        assert is_balanced(daemon.report["records"])
        assert daemon.event("unfinished")["records"] == 3


def test_a_stop_that_takes_too_long(folder: Path) -> None:
    text = config(TCP, python_model(folder, STUCK), "127.0.0.1:0", '[delivery]\ndrain_timeout = "100ms"\n')
    with running(folder, text) as daemon:
        daemon.send("rides_in", LINES)
        daemon.until(lambda: daemon.status()["inflight_batches"] == 1, "a batch is with the model")
        assert daemon.stop() == 3
        assert daemon.report["records"]["unacked"] == 3


def test_a_model_that_fails_on_everything(folder: Path) -> None:
    with running(folder, config(model=python_model(folder, WRONG))) as daemon:
        assert daemon.wait() == 1
        assert daemon.report["ended"] == "failed"
        assert "wrong model" in daemon.report["error"]
        failed = daemon.event("failed")
    assert "wrong model" in failed["error"]
    assert "exception" not in failed


def test_an_input_that_is_not_there(folder: Path) -> None:
    (folder / "in.jsonl").unlink()
    with running(folder, config()) as daemon:
        assert daemon.wait() == 1
        assert "in.jsonl" in daemon.event("failed")["error"]
        assert daemon.report["ended"] == "failed"


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_to_stop_before_the_pipeline_runs(folder: Path, name: str) -> None:
    source = f"import os, signal\nos.kill(os.getpid(), signal.{name})\ndef score(x): return x[:, 0]"
    with running(folder, config(model=python_model(folder, source))) as daemon:
        assert daemon.wait() == 0
        assert daemon.rest() == []
    assert not (folder / "out.jsonl").exists()


def test_an_output_that_is_there_already(folder: Path) -> None:
    (folder / "out.jsonl").write_text("precious\n")
    with running(folder, config()) as daemon:
        assert daemon.wait() == 2
        assert "if_exists" in daemon.event("failed")["error"]
    assert (folder / "out.jsonl").read_text() == "precious\n"


def test_an_output_that_went_away_is_somebody_s_to_put_back(folder: Path) -> None:
    """The exit code tells who restarts daemons that it would be the same again."""
    with running(folder, config()) as daemon:
        assert daemon.wait() == 0
    (folder / "out.jsonl").rename(folder / "elsewhere.jsonl")
    with running(folder, config()) as daemon:
        assert daemon.wait() == 2
        assert "out.jsonl is missing, and was stored with " in daemon.event("failed")["error"]
    (folder / "elsewhere.jsonl").rename(folder / "out.jsonl")
    with running(folder, config()) as daemon:
        assert daemon.wait() == 0


def test_a_state_folder_has_one_holder(folder: Path) -> None:
    with running(folder, config(TCP)) as first:
        first.event("listening")
        with running(folder, config(TCP)) as second:
            assert second.wait() == 2
            (line,) = second.rest()
        assert line["line"] == (
            f"error: state folder {folder}/.streambatch/rides is held by process {first.process.pid}; "
            "stop that, or choose another state_dir\n"
        )
        first.process.kill()
        first.process.wait()
        with running(folder, config(TCP), "--set", "sink.scores.if_exists=append") as third:
            third.event("listening")
            assert third.stop() == 0


@pytest.mark.parametrize("state_dir", ["in.jsonl", "in.jsonl/deeper"])
def test_a_state_folder_that_can_not_be(folder: Path, state_dir: str) -> None:
    with running(folder, f'state_dir = "{state_dir}"\n' + config()) as daemon:
        assert daemon.wait() == 2
        (line,) = daemon.rest()
    assert line["line"].startswith(f"error: state_dir: found {folder}/in.jsonl")


@pytest.mark.parametrize("path", ["none/report.json", "."])
def test_a_report_that_can_not_be_written(folder: Path, path: str) -> None:
    with running(folder, config(), "--report", path) as daemon:
        assert daemon.wait() == 2
        (line,) = daemon.rest()
    assert line["line"].startswith(f"error: --report: found '{path}'")
    assert not (folder / ".streambatch").exists()


def test_a_report_whose_folder_went_away(folder: Path) -> None:
    (folder / "reports").mkdir()
    with running(folder, config(TCP), "--report", "reports/report.json") as daemon:
        daemon.event("listening")
        shutil.rmtree(folder / "reports")
        assert daemon.stop() == 1
        assert "reports" in daemon.event("report_failed")["error"]


def test_a_report_whose_place_was_taken_by_a_folder_leaves_nothing_behind(folder: Path) -> None:
    with running(folder, config(TCP), "--report", "report.json") as daemon:
        daemon.event("listening")
        (folder / "report.json").mkdir()
        assert daemon.stop() == 1
        daemon.event("report_failed")
    assert list(folder.glob(".report.json*")) == []


def test_the_admin_port(folder: Path) -> None:
    with running(folder, config(TCP, http="127.0.0.1:0")) as daemon:
        daemon.event("state_changed", state="running")
        assert daemon.get("/livez") == (200, b"ok\n")
        assert daemon.get("/readyz") == (200, b"ok\n")
        effective = json.loads(daemon.get("/config")[1])
        assert effective["batch"]["max_wait"] == 0.001
        metrics = daemon.get("/metrics")[1].decode()
        digest = daemon.event("starting")["digest"]
        assert f'streambatch_config_info{{digest="{digest}"}} 1.0' in metrics
        assert 'streambatch_model_info{digest="' in metrics
        assert daemon.stop() == 0


def test_an_admin_port_that_is_taken(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        with running(folder, config(http=address)) as daemon:
            assert daemon.wait() == 2
            assert address in daemon.event("failed")["error"]
    assert not (folder / "out.jsonl").exists()


def test_a_source_port_that_is_taken(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        with running(folder, config(TCP.replace("127.0.0.1:0", address))) as daemon:
            assert daemon.wait() == 1
            assert address in daemon.event("failed")["error"]
