"""What the README says to type works, in its order, in an empty folder; and so does the demo."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.running import is_balanced, scores_in

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


def free_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return str(listener.getsockname()[1])


def run(script: str, folder: Path, admin: str) -> str:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environ = {**os.environ, "PATH": path, "STREAMBATCH_HTTP__LISTEN": f"127.0.0.1:{admin}"}
    command = ["bash", "-euxo", "pipefail", "-c", script]
    done = subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, timeout=50)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.skipif(not (shutil.which("curl") and shutil.which("nc")), reason="needs curl and nc")
def test_readme(tmp_path: Path) -> None:
    install, *commands = blocks("sh")
    assert "make demo" in install
    admin, live = free_port(), free_port()
    script = "".join(commands).replace("9464", admin).replace("9000", live)
    printed = run(script, tmp_path, admin)
    folder = tmp_path / "rides"
    scores = scores_in(folder / "scores.jsonl")
    assert [score["id"] for score in scores] == list(range(1000))
    assert [list(score) for score in scores[:1]] == [["id", "score", "city"]]
    assert scores_in(folder / "live.jsonl") == scores
    # The record with two features came by file and by socket.
    assert [letter["reason"] for letter in scores_in(folder / "dead.jsonl")] == ["wrong_shape", "wrong_shape"]
    report = json.loads((folder / "report.json").read_bytes())
    assert is_balanced(report["records"])
    assert 'streambatch_records_scored_total{pipeline="rides",source="live"} 1000.0' in printed
    assert scores_in(folder / "live.log")[-1]["event"] == "stopped"
    (python,) = blocks("python")
    (folder / "library.py").write_text(python)
    assert "'scored': 1000" in run("python library.py", folder, admin)
    assert len(scores_in(folder / "means.jsonl")) == 1000


def test_links_in_the_docs_lead_somewhere() -> None:
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page}: {target}"


def test_demo(tmp_path: Path) -> None:
    environ = {**os.environ, "TMPDIR": str(tmp_path)}
    command = [sys.executable, str(ROOT / "examples/demo.py")]
    done = subprocess.run(command, env=environ, cwd=tmp_path, capture_output=True, text=True, timeout=50)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "received 310,000 records: 309,993 scored, 7 dead letters, 0 left in flight" in done.stdout
    assert [json.loads(line)["id"] for line in done.stdout.splitlines()[-3:]] == [1, 2, 3]
