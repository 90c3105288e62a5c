"""The wheel holds all that the program needs: installed elsewhere, far from the clone, it runs."""

import configparser
import json
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

import streambatch

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the `bin` of a fresh environment that holds the wheel; what it depends on is borrowed from this one."""
    folder = tmp_path_factory.mktemp("elsewhere")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    build = ["wheel", str(ROOT), "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder)]
    subprocess.run([*pip, *build], check=True, timeout=50)
    (wheel,) = folder.glob("streambatch-*.whl")
    venv.create(folder / "venv", with_pip=False)
    python = folder / "venv/bin/python"
    subprocess.run([*pip, "--python", str(python), "install", "--no-deps", str(wheel)], check=True, timeout=50)
    packages = next((folder / "venv/lib").glob("python*/site-packages"))
    borrowed = [path for path in sys.path if path.endswith("site-packages")]
    (packages / "borrowed.pth").write_text("\n".join(borrowed))
    return python.parent


def run(elsewhere: Path, folder: Path, *arguments: str) -> str:
    command = [str(elsewhere / arguments[0]), *arguments[1:]]
    done = subprocess.run(command, cwd=folder, env={"TMPDIR": str(folder)}, capture_output=True, text=True, timeout=50)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_what_it_holds(elsewhere: Path) -> None:
    (wheel,) = elsewhere.parents[1].glob("streambatch-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        info = f"streambatch-{streambatch.__version__}.dist-info"
        entries = archive.read(f"{info}/entry_points.txt").decode()
        licence = archive.read(f"{info}/licenses/LICENSE")
    assert {name.partition("/")[0] for name in names} == {"streambatch", info}
    assert licence == (ROOT / "LICENSE").read_bytes()
    source = {path.relative_to(ROOT).as_posix() for path in (ROOT / "streambatch").rglob("*.py")}
    assert {name for name in names if name.endswith(".py")} == source
    assert {"streambatch/py.typed", "streambatch/cli/starter.toml", "streambatch/testing/__init__.py"} <= names
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    parsed = configparser.ConfigParser()
    parsed.read_string(entries)
    expected = {**project["entry-points"], "console_scripts": project["scripts"]}
    assert {group: dict(parsed[group]) for group in parsed.sections()} == expected


def test_it_is_the_wheel_that_runs(elsewhere: Path, tmp_path: Path) -> None:
    found = run(elsewhere, tmp_path, "python", "-c", "import streambatch; print(streambatch.__file__)")
    assert found.startswith(str(elsewhere.parent))
    assert run(elsewhere, tmp_path, "streambatch", "--version") == f"streambatch {streambatch.__version__}\n"


def test_the_demo(elsewhere: Path, tmp_path: Path) -> None:
    assert " 0 in flight" in run(elsewhere, tmp_path, "streambatch", "demo", "--seconds", "1")
    assert list(tmp_path.iterdir()) == []


def test_the_starter(elsewhere: Path, tmp_path: Path) -> None:
    run(elsewhere, tmp_path, "streambatch", "init", "x")
    run(elsewhere, tmp_path / "x", "streambatch", "run", "pipeline.toml", "--set", "http.listen=off", "--report", "r")
    assert json.loads((tmp_path / "x/r").read_bytes())["records"]["scored"] == 998


def test_the_schema(elsewhere: Path, tmp_path: Path) -> None:
    assert "source" in json.loads(run(elsewhere, tmp_path, "streambatch", "schema"))["properties"]
