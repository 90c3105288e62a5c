"""The command line as a user has it: a process, its exit code, what it prints and where."""

import json
import logging
import os
import pty
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import structlog

from streambatch.cli import main
from streambatch.config.plugins import installed
from streambatch.version import __version__

COMMANDS = ("demo", "init", "check", "run", "top", "health", "schema", "audit", "state", "runs", "dead-letters")
CONFIG = """
    name = "rides"
    [source.rides_in]
    type = "file"
    path = "in.jsonl"
    [record]
    id = "id"
    features = "x"
    shape = [2]
    dtype = "float64"
    [model]
    type = "linear"
    path = "model.npz"
    [sink.scores]
    type = "file"
    path = "out.jsonl"
    [http]
    listen = "off"
    """


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    np.savez(tmp_path / "model.npz", weights=[1.0, 10.0], bias=0.5)
    rows = [{"id": at, "x": [at, at]} for at in range(20)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "pipeline.toml").write_text(CONFIG)
    return tmp_path


def process(folder: Path, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run the command line as a process of its own."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("STREAMBATCH_")} | environ
    command = [sys.executable, "-m", "streambatch", *arguments]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=30)


class CommandLine:
    """Runs the command line in this process, for what ends before a daemon starts."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch, self._capsys = monkeypatch, capsys

    def __call__(self, *arguments: str, folder: Path = Path()) -> subprocess.CompletedProcess[str]:
        self._monkeypatch.setattr(sys, "argv", ["streambatch", *arguments])
        self._monkeypatch.chdir(folder)
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = self._capsys.readouterr()
        code = ended.value.code
        assert isinstance(code, int)
        return subprocess.CompletedProcess([], code, out, err)


@pytest.fixture
def streambatch(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[CommandLine]:
    for name in list(os.environ):
        if name.startswith("STREAMBATCH_"):
            monkeypatch.delenv(name)
    handlers, level = logging.root.handlers[:], logging.root.level
    yield CommandLine(monkeypatch, capsys)
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)
    structlog.reset_defaults()


def test_version(streambatch: CommandLine) -> None:
    done = streambatch("--version")
    assert (done.returncode, done.stdout) == (0, f"streambatch {__version__}\n")


@pytest.mark.parametrize("arguments", [["--help"], *([name, "--help"] for name in COMMANDS)])
def test_help(streambatch: CommandLine, arguments: list[str]) -> None:
    done = streambatch(*arguments)
    assert done.returncode == 0
    assert done.stdout.startswith("Usage: streambatch")
    assert done.stderr == ""


def test_help_imports_nothing_heavy() -> None:
    code = "import sys, streambatch.cli.app\nprint(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert {"numpy", "pyarrow", "pydantic", "uvicorn", "structlog", "rich", "anyio"}.isdisjoint(loaded)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["fly"], "error: No such command 'fly'; see streambatch --help\n"),
        (["run"], "error: Missing argument 'CONFIG'; see streambatch run --help\n"),
        (["run", "a.toml", "--sett", "x"], "error: No such option: --sett"),
        (
            ["check", "a.toml", "--sample", "x"],
            "error: Invalid value for '--sample': found 'x'; allowed: an integer; see streambatch check --help\n",
        ),
        (
            ["check", "a.toml", "--sample", "-1"],
            "error: Invalid value for '--sample': found '-1'; allowed: at least 0; see streambatch check --help\n",
        ),
        (
            ["demo", "--seconds", "3601"],
            "error: Invalid value for '--seconds': found '3601'; allowed: at most 3600; see streambatch demo --help\n",
        ),
        ([], "Usage: streambatch"),
    ],
)
def test_usage_errors(streambatch: CommandLine, arguments: list[str], said: str) -> None:
    done = streambatch(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(said)
    assert "see streambatch" in done.stderr or not arguments


def test_a_name_that_is_not_utf_8_is_shown_as_everywhere(streambatch: CommandLine, folder: Path) -> None:
    assert streambatch("run", "nope\udce9.toml", folder=folder).stderr.startswith(r"error: nope\xe9.toml: file: ")
    assert streambatch("nope\udce9").stderr.startswith(r"error: No such command 'nope\xe9'; ")
    done = streambatch("check", "pipeline.toml", "--set", "sink.scores.path=x\udce9.jsonl", folder=folder)
    assert (done.returncode, done.stderr) == (0, "")
    assert rf"{folder}/x\xe9.jsonl" in done.stdout


def test_completion_knows_the_commands(folder: Path) -> None:
    environ = {"_STREAMBATCH_COMPLETE": "complete_bash", "COMP_WORDS": "streambatch ", "COMP_CWORD": "1"}
    assert process(folder, **environ).stdout.split() == list(COMMANDS)


def test_schema(streambatch: CommandLine) -> None:
    done = streambatch("schema")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["required"] == ["name", "source", "record", "model", "sink"]


FIVE_MISTAKES = """
    name = "rides"
    [source.rides_in]
    type = "file"
    path = "in/*.jsonl"
    max_record_bytes = "1 Mb"
    [record]
    features = "features"
    shape = [10]
    dtype = "float16"
    [batch]
    max_recods = 10
    [model]
    type = "linear"
    path = "model.npz"
    [workers]
    executor = "process"
    [sink.scores]
    type = "kafka"
    """


@pytest.mark.parametrize("command", ["run", "check"])
def test_five_mistakes_are_five_errors(streambatch: CommandLine, command: str, tmp_path: Path) -> None:
    (tmp_path / "pipeline.toml").write_text(FIVE_MISTAKES)
    done = streambatch(command, "pipeline.toml", folder=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines() == [
        "error: pipeline.toml:6: source.rides_in.max_record_bytes: found '1 Mb'; "
        "allowed: a size such as 512, 64KiB, 4MiB or 1GiB",
        "error: pipeline.toml:10: record.dtype: found 'float16'; allowed: 'float32' or 'float64'",
        "error: pipeline.toml:12: batch.max_recods: found an unknown key (10); "
        "did you mean max_records? allowed: max_records, max_bytes, max_wait",
        "error: pipeline.toml:17: workers.executor: found 'process'; allowed: 'inline' or 'thread'",
        f"error: pipeline.toml:19: sink.scores.type: found 'kafka'; allowed: {', '.join(installed('sinks'))}",
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["pipeline.toml"]


@pytest.mark.parametrize("command", ["run", "check"])
def test_a_config_that_is_not_there(streambatch: CommandLine, command: str, tmp_path: Path) -> None:
    done = streambatch(command, "none.toml", folder=tmp_path)
    assert done.returncode == 2
    assert done.stderr == (
        "error: none.toml: file: found no such file or directory; allowed: a config in TOML that can be read\n"
    )


@pytest.mark.parametrize("command", ["run", "check"])
@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.path=none.npz", "error: model linear: "),
        ("record.shape=[3]", "error: model linear: expected shape "),
        ("model.sha256=" + "0" * 64, "error: model linear: "),
    ],
)
def test_a_model_that_will_not_do(
    streambatch: CommandLine, command: str, override: str, message: str, folder: Path
) -> None:
    done = streambatch(command, "pipeline.toml", "--set", override, folder=folder)
    assert done.returncode == 2
    assert done.stderr.startswith(message)
    assert done.stderr.count("\n") == 1


def test_check_says_what_would_run(streambatch: CommandLine, folder: Path) -> None:
    before = sorted(folder.iterdir())
    done = streambatch("check", "pipeline.toml", folder=folder)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(rf"^source +rides_in: file, jsonl, {folder}/in.jsonl \(1 files, 4\d\d B\)$", done.stdout, re.M)
    assert re.search(r"^model +linear, sha256 [0-9a-f]{12}$", done.stdout, re.M)
    assert sorted(folder.iterdir()) == before


def test_check_scores_a_sample(streambatch: CommandLine, folder: Path) -> None:
    with (folder / "in.jsonl").open("r+") as file:
        file.write("#")
    before = sorted(folder.iterdir())
    done = streambatch("check", "pipeline.toml", "--sample", "3", "--set", "batch.max_records=2", folder=folder)
    assert done.returncode == 0
    assert [json.loads(line) for line in done.stdout.splitlines()[-2:]] == [
        {"id": 1, "score": 11.5},
        {"id": 2, "score": 22.5},
    ]
    assert done.stderr.startswith("dead: decode, invalid_json: ")
    assert done.stderr.count("\n") == 1
    assert sorted(folder.iterdir()) == before


def test_check_samples_all_there_is_of_a_followed_file(streambatch: CommandLine, folder: Path) -> None:
    done = streambatch(
        "check", "pipeline.toml", "--sample", "99", "--set", "source.rides_in.follow=true", folder=folder
    )
    assert done.returncode == 0
    assert len([line for line in done.stdout.splitlines() if line.startswith("{")]) == 20


def test_check_of_an_async_model(streambatch: CommandLine, folder: Path) -> None:
    (folder / "slowly.py").write_text("async def score(x): return x[:, 0]")
    overrides = ["--set", 'model={type="python", path="slowly:score"}']
    done = streambatch("check", "pipeline.toml", "--sample", "1", *overrides, folder=folder)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith('{"id":0,"score":0.0}\n')


def test_check_says_what_it_can_not_try(streambatch: CommandLine, folder: Path) -> None:
    (folder / "out.jsonl").write_text("old\n")
    (folder / "picky.py").write_text("def score(x): return 1 / 0")
    done = streambatch(
        "check", "pipeline.toml", "--sample", "1",
        "--set", 'model={type="python", path="picky:score"}',
        "--set", 'source={live={type="unix", path="in.sock"}}',
        folder=folder,
    )  # fmt: skip
    assert done.returncode == 0
    notes = done.stderr.splitlines()
    assert len(notes) == 3
    assert notes[0] == "note: on records of zeros, steps and model fail with ZeroDivisionError: division by zero"
    assert "out.jsonl is already there: run would stop" in notes[1]
    assert notes[2] == "note: source live has no records to sample before it runs"


@pytest.mark.parametrize("listen", ["127.0.0.1:0", "off"])
def test_check_names_the_extras_to_install(
    streambatch: CommandLine, folder: Path, listen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "streambatch.observe.spans", raising=False)
    for library in ("datasketches", "opentelemetry.sdk.trace"):
        monkeypatch.setitem(sys.modules, library, None)
    enabled = ["drift.enabled=true", "otel.enabled=true", f"http.listen={listen}"]
    done = streambatch("check", "pipeline.toml", *(word for one in enabled for word in ("--set", one)), folder=folder)
    assert done.returncode == 2
    needed = ["drift", "otel"] if listen != "off" else ["otel"]
    assert done.stderr.splitlines() == [
        f"error: {folder}/pipeline.toml: {extra}.enabled: found true without its library; "
        f"allowed: true with pip install 'streambatch[{extra}]'"
        for extra in needed
    ]


def test_check_names_the_extra_for_a_compression(
    streambatch: CommandLine, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "zstandard", None)
    done = streambatch("check", "pipeline.toml", "--set", "source.rides_in.compression=zstd", folder=folder)
    assert done.returncode == 2
    assert done.stderr == (
        "error: pipeline.toml: source.rides_in.compression (from --set): found zstd without its library; "
        "allowed: zstd with pip install 'streambatch[zstd]'\n"
    )


def test_check_notes_a_folder_that_can_not_be_written_to(
    streambatch: CommandLine, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = folder / "closed"
    closed.mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: path != closed)  # root may write anywhere
    overrides = ["--set", "sink.scores.path=closed/new/out.jsonl", "--set", "dead_letter.path=open/dead.jsonl"]
    done = streambatch("check", "pipeline.toml", *overrides, folder=folder)
    assert done.returncode == 0
    assert done.stderr == f"note: sink.scores.path: {closed} can't be written to; run would wait until it can\n"


def test_check_of_files_that_are_not_there(streambatch: CommandLine, folder: Path) -> None:
    done = streambatch("check", "pipeline.toml", "--set", "source.rides_in.path=none*.jsonl", folder=folder)
    assert done.returncode == 2
    assert done.stderr.startswith("error: source rides_in: no file matches ")


def test_scores_on_stdout_and_nothing_else(folder: Path) -> None:
    done = process(folder, "run", "pipeline.toml", "--set", 'sink={scores={type="stdout"}}')
    assert done.returncode == 0
    assert [json.loads(line)["id"] for line in done.stdout.splitlines()] == list(range(20))
    assert {json.loads(line)["event"] for line in done.stderr.splitlines()} >= {"starting", "stopped"}


def test_the_environment_overrides_the_file(folder: Path) -> None:
    done = process(folder, "run", "pipeline.toml", STREAMBATCH_SINK__SCORES__PATH="elsewhere.jsonl")
    assert done.returncode == 0
    assert len((folder / "elsewhere.jsonl").read_text().splitlines()) == 20


def test_a_terminal_gets_text(folder: Path) -> None:
    leader, follower = pty.openpty()
    command = [sys.executable, "-m", "streambatch", "run", "pipeline.toml"]
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=follower)
    os.close(follower)
    shown = b""
    while block := _read(leader):
        shown += block
    os.close(leader)
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.read() == b""
    assert process.wait() == 0
    assert b"20 scored" in shown
    assert b"stopped" in shown
    assert b'{"' not in shown


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # how Linux says that the other end is closed
        return b""
