"""Who holds a state folder: real locks, within this process and between processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from streambatch.core.errors import ConfigError, HeldError
from streambatch.storage.folder import LOCK, StateFolder, held_by

HOLDER = """
import sys
from pathlib import Path
from streambatch.storage.folder import StateFolder
with StateFolder(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_state_folder_is_held_once(tmp_path: Path) -> None:
    path = tmp_path / "a/b"
    with StateFolder(path):
        with pytest.raises(HeldError, match=r"a/b is held by process \d+; stop that, or choose"), StateFolder(path):
            pass
    with StateFolder(path):
        pass


def test_its_owner_enters_again(tmp_path: Path) -> None:
    folder = StateFolder(tmp_path)
    with folder:
        with folder:
            assert held_by(tmp_path) == str(os.getpid())
        assert held_by(tmp_path) == str(os.getpid())
    assert held_by(tmp_path) is None
    with folder:
        assert held_by(tmp_path) == str(os.getpid())


def test_a_lock_that_nobody_holds_any_more(tmp_path: Path) -> None:
    (tmp_path / LOCK).write_text("123456789\n")
    assert held_by(tmp_path) is None
    with StateFolder(tmp_path):
        assert int((tmp_path / LOCK).read_text()) == os.getpid()


def test_a_folder_that_is_not_there_is_held_by_nobody(tmp_path: Path) -> None:
    assert held_by(tmp_path / "none") is None
    assert not (tmp_path / "none").exists()


def test_another_process_is_named_until_it_is_gone(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        assert held_by(tmp_path) == str(process.pid)
        with pytest.raises(HeldError, match=f"process {process.pid}"), StateFolder(tmp_path):
            pass
        process.kill()
        process.wait()
        assert held_by(tmp_path) is None
        with StateFolder(tmp_path):
            pass


def test_what_is_raised_inside_comes_out(tmp_path: Path) -> None:
    with pytest.raises(BlockingIOError), StateFolder(tmp_path):
        raise BlockingIOError
    assert held_by(tmp_path) is None


def test_a_state_folder_that_can_not_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"state_dir: found .*file"), StateFolder(tmp_path / "file"):
        pass
