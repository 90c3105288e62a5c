"""`streambatch health` says what the probes' pages say, and fails when they do or nobody answers."""

import socket
import subprocess
import sys
from pathlib import Path

from tests.e2e.running import running

CONFIG = """
name = "rides"
source.live = { type = "tcp", listen = "127.0.0.1:0" }
record = { features = "x", shape = [1] }
model = { type = "python", path = "model:Ones" }
sink.scores = { type = "none" }
http = { listen = "127.0.0.1:0" }
"""
MODEL = """
class Ones:
    def score(self, x):
        return x[:, 0] + 1
"""


def health(*arguments: str) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-m", "streambatch", "health", *arguments], capture_output=True, text=True, timeout=50
    )
    return done.returncode, done.stdout, done.stderr


def test_a_daemon_that_runs(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(MODEL)
    with running(tmp_path, CONFIG) as daemon:
        url = daemon.event("admin_listening")["url"]
        daemon.event("state_changed", state="running")
        assert health(url) == (0, "ok\n", "")
        assert health("--ready", url.removeprefix("http://")) == (0, "ok\n", "")


def test_a_page_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(MODEL)
    with running(tmp_path, CONFIG) as daemon:
        code, out, err = health(f"{daemon.event('admin_listening')['url']}/elsewhere")
    assert (code, out) == (1, "")
    assert "no such page" in err


def test_nobody_answers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    code, out, err = health(address)
    assert (code, out) == (1, "")
    assert err == f"error: http://{address}/livez: [Errno 111] Connection refused\n"


def test_what_is_no_address() -> None:
    code, out, err = health("localhost:70000")
    assert (code, out) == (2, "")
    assert err.startswith("error: URL: found 'localhost:70000'; allowed: ")
    assert "1 to 65535" in err
