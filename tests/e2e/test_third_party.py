"""A package by somebody else: installed with pip, found by name, run from a config, and passing the suites."""

import json
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from tests.e2e.running import is_balanced

ROOT = Path(__file__).parents[2]
PACKAGE = Path(__file__).parent / "third_party"
pytestmark = pytest.mark.slow

CONFIG = """
name = "counted"
[source.numbers]
type = "counter"
count = 1234
[record]
id = "id"
features = "x"
shape = [1]
dtype = "float64"
[model]
type = "python"
path = "double:score"
[sink.scores]
type = "tagged"
path = "out/scores.txt"
tag = "<score>"
[http]
listen = "off"
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the Python of a fresh environment that holds the package; all else is borrowed from this one.

    pip gets no network: the backend that builds the package is one of the test requirements.
    """
    folder = tmp_path_factory.mktemp("third_party")
    venv.create(folder / "venv", with_pip=False)
    packages = next((folder / "venv/lib").glob("python*/site-packages"))
    borrowed = [path for path in sys.path if path.endswith("site-packages")]
    (packages / "borrowed.pth").write_text("\n".join([str(ROOT), *borrowed]))
    own = folder / "venv/bin/python"
    shutil.copytree(PACKAGE, folder / "source", ignore=shutil.ignore_patterns("__pycache__"))
    pip = [sys.executable, "-m", "pip", "--python", str(own), "--disable-pip-version-check", "--quiet"]
    install = ["install", "--no-index", "--no-deps", "--no-build-isolation", str(folder / "source")]
    subprocess.run([*pip, *install], check=True, timeout=50)
    return own


def run(python: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([python, "-m", *arguments], cwd=folder, capture_output=True, text=True, timeout=170)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "double.py").write_text("def score(x):\n    return 2 * x[:, 0]\n")
    (tmp_path / "pipeline.toml").write_text(CONFIG)
    (tmp_path / "out").mkdir()
    return tmp_path


def test_its_parts_are_found_by_name_and_run(python: Path, folder: Path) -> None:
    done = run(python, folder, "streambatch", "run", "pipeline.toml", "--report", "report.json")
    assert done.returncode == 0, done.stderr
    lines = (folder / "out/scores.txt").read_text().splitlines()
    assert lines == [f'<score> {{"id":{n},"score":{2 * n + 1}.0}}' for n in range(1234)]
    report = json.loads((folder / "report.json").read_bytes())
    assert report["records"]["scored"] == 1234
    assert is_balanced(report["records"])


def test_a_sink_of_options_and_writer_runs_too_and_its_claims_are_heeded(python: Path, folder: Path) -> None:
    config = CONFIG.replace('type = "tagged"', 'type = "last"').replace('tag = "<score>"\n', "")
    (folder / "pipeline.toml").write_text(config)
    done = run(python, folder, "streambatch", "run", "pipeline.toml")
    assert done.returncode == 0, done.stderr
    assert (folder / "out/scores.txt").read_text() == '{"id":1233,"score":2467.0}\n'
    (folder / "pipeline.toml").write_text(f'{config}[dead_letter]\npath = "out/scores.txt"\n')
    done = run(python, folder, "streambatch", "check", "pipeline.toml")
    assert done.returncode == 2
    assert "a file that sink.scores.path doesn't write" in done.stderr


def test_it_is_not_found_where_it_is_not_installed(folder: Path) -> None:
    done = run(Path(sys.executable), folder, "streambatch", "check", "pipeline.toml")
    assert done.returncode == 2
    assert "source.numbers.type: found 'counter'" in done.stderr


def test_its_options_are_checked_and_in_the_schema(python: Path, folder: Path) -> None:
    config = CONFIG.replace("count = 1234", "count = -1").replace("tag =", "tagg =")
    (folder / "pipeline.toml").write_text(config)
    done = run(python, folder, "streambatch", "check", "pipeline.toml")
    assert done.returncode == 2
    assert "source.numbers.count: found -1; allowed: at least 0" in done.stderr
    assert "sink.scores.tagg: found an unknown key" in done.stderr
    schema = run(python, folder, "streambatch", "schema").stdout
    assert "How many records." in schema
    assert "What a line starts with." in schema


@pytest.mark.timeout(180)
def test_it_passes_the_suites(python: Path, tmp_path: Path) -> None:
    shutil.copy(PACKAGE / "suites.py", tmp_path)
    done = run(python, tmp_path, "pytest", "-q", "-p", "no:cacheprovider", "suites.py")
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(done.stdout.split(" passed")[0].split()[-1]) > 15, done.stdout
