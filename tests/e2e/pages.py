"""Runs what a page says to type, in its order, in one shell.

A block of `sh` is typed as it is. In one of `console`, a line after `$ ` is typed and the lines below it must come out,
in this order, with `...` for anything. One of `python` or `toml` whose first line is a comment of a file's name becomes
that file; any other is for reading only.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryFile

from tests.e2e.ports import held_ports

_BLOCK = re.compile(r"^```(sh|console|python|toml)\n(.*?)^```$", re.S | re.M)
_FILE = re.compile(r"# ([\w./-]+\.(?:py|toml))\n")
_MARK = "--8<-- console"
PORTS = ("9464", "9000", "9001", "8080")
"""Ports that pages use; each run of a page gets others in their place, which nobody else is given meanwhile."""
SECONDS_MAX = 150
"""How long a page may take."""


class Page:
    """A page: its blocks, and what comes out when they are run."""

    def __init__(self, path: Path) -> None:
        self.text = path.read_text()

    def blocks(self, *languages: str) -> list[tuple[str, str]]:
        """Return language and text of each block, by default of all."""
        found = _BLOCK.findall(self.text)
        return [(language, text) for language, text in found if not languages or language in languages]

    def run(self, folder: Path, *, skip: int = 0) -> str:
        """Run the page's blocks but the first `skip`, check what comes out, and return it."""
        with held_ports(len(PORTS)) as held:
            ports = dict(zip(PORTS, map(str, held), strict=True))
            blocks = [(language, _with_ports(text, ports)) for language, text in self.blocks()[skip:]]
            script = "\n".join(_typed(language, text) for language, text in blocks)
            printed = run_script(script, folder, ports["9464"])
        shown = printed.split(f"{_MARK}\n")[1::2]
        for (_, text), output in zip([block for block in blocks if block[0] == "console"], shown, strict=True):
            check_output(text, output)
        return printed


def run_script(script: str, folder: Path, admin: str) -> str:
    """Run a script and return what it printed on both streams; it must succeed."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("STREAMBATCH_")}
    environ |= {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "STREAMBATCH_HTTP__LISTEN": f"127.0.0.1:{admin}",
    }
    with (
        TemporaryFile("w+") as output,
        subprocess.Popen(
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=folder,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        ) as shell,
    ):
        try:
            ended = str(shell.wait(SECONDS_MAX))
        except subprocess.TimeoutExpired:
            ended = f"not ended after {SECONDS_MAX} s"
        finally:
            with suppress(ProcessLookupError):  # what it left in the background
                os.killpg(shell.pid, signal.SIGKILL)
        output.seek(0)
        printed = output.read()
    assert ended == "0", f"exit code {ended}: {printed}\n{_logs(folder)}"
    return printed


def _logs(folder: Path) -> str:
    """Return the ends of what was logged below a folder."""
    return "\n".join(f"{path.name}: {path.read_text()[-2000:]}" for path in sorted(folder.rglob("*.log")))


def check_output(block: str, output: str) -> None:
    """Check that the lines of a block that are not typed came out."""
    at, lines = 0, output.splitlines()
    for wanted in _expected(block):
        pattern = re.compile(".*".join(re.escape(piece.strip()) for piece in wanted.split("...")))
        while at < len(lines) and not pattern.fullmatch(lines[at].strip()):
            at += 1
        assert at < len(lines), f"{wanted!r} did not come out of\n{block}\nbut\n{output}"
        at += 1


def _with_ports(text: str, ports: Mapping[str, str]) -> str:
    return re.sub(rf"\b({'|'.join(ports)})\b", lambda named: ports[named[1]], text)


def _typed(language: str, text: str) -> str:
    if language == "console":
        commands = [line.removeprefix("$ ") for line in text.splitlines() if line.startswith("$ ")]
        return "\n".join([f"echo {shlex.quote(_MARK)}", *commands, f"echo {shlex.quote(_MARK)}"])
    if language == "sh":
        return text
    named = _FILE.match(text)
    return f"cat > {named[1]} <<'END_OF_FILE'\n{text}END_OF_FILE" if named else ""


def _expected(block: str) -> Iterator[str]:
    yield from (line for line in block.splitlines() if line.strip() not in ("", "...") and not line.startswith("$ "))
