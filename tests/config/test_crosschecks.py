"""What two parts must not both take, told by their claims: whoever wrote them, and whatever their types are called."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import KW_ONLY
from pathlib import Path
from typing import Any

import pytest

from streambatch.config.config import load_config
from streambatch.config.plugins import find_part
from streambatch.config.sections import Group
from streambatch.core.errors import ConfigError
from streambatch.core.intake import Intake
from streambatch.core.options import options
from streambatch.core.parts import Claim, Reader, Sink, Site, Source, Writer

BASE = """
    name = "rides"
    [source.rides_in]
    type = "file"
    path = "in/*.jsonl"
    [record]
    features = "features"
    shape = [10]
    [model]
    type = "linear"
    path = "model.npz"
    [sink.scores]
    """
FILE = "type = 'file'\npath = 'out/scores.jsonl'\n"
TCP = "[source.live]\ntype = 'tcp'\nlisten = '127.0.0.1:9000'\n"


@options
class Acme(Source):
    """A plugin's source."""

    kind: Any
    value: str = ""
    _: KW_ONLY
    name: str = "acme"
    format: str = "jsonl"

    def build(self, site: Site) -> Reader:
        raise NotImplementedError  # a config is only checked here, and never run

    def claims(self) -> Iterable[Claim]:
        return [Claim(self.kind, "value", self.value)]


@options
class AcmeOutput(Sink):
    """A plugin's sink."""

    value: str
    _: KW_ONLY
    name: str = "acme"
    format: str = "jsonl"

    def build(self, site: Site) -> Writer:
        raise NotImplementedError  # a config is only checked here, and never run

    def claims(self) -> Iterable[Claim]:
        return [Claim("output", "value", self.value)]


@options
class Running:
    """A plugin's source that is no subclass of ours, and runs itself."""

    value: str
    _: KW_ONLY
    name: str = "running"
    format: str = "jsonl"
    is_finite: bool = False

    async def run(self, intake: Intake) -> None:
        raise NotImplementedError  # a config is only checked here, and never run

    def claims(self) -> Iterable[Claim]:
        return [Claim("tcp", "value", self.value)]


def find(group: Group, name: str | None) -> type[Any]:
    plugins: dict[Any, type[Any]] = {
        ("sources", "acme"): Acme, ("sources", "running"): Running, ("sinks", "acme"): AcmeOutput,
    }  # fmt: skip
    return plugins.get((group, name)) or find_part(group, name)


def acme(name: str, kind: str, value: str = "") -> str:
    return f"[source.{name}]\ntype = 'acme'\nkind = '{kind}'\nvalue = '{value}'\n"


@pytest.mark.parametrize(
    ("more", "key", "allowed"),
    [
        (FILE + TCP + acme("a", "tcp", "0.0.0.0:9000"), "source.a.value", "source.live.listen doesn't listen on"),
        (FILE + acme("a", "tcp", "[::1]:1") + acme("b", "tcp", "[::1]:1"), "source.b.value", "an address that source"),
        (FILE + acme("a", "udp", "[::1]:1") + acme("b", "udp", "[::1]:1"), "source.b.value", "an address that source"),
        (FILE + acme("a", "tcp", "127.0.0.1:9") + "[http]\nlisten = '127.0.0.1:9'", "http.listen", "source.a.value"),
        (FILE + TCP + "[source.r]\ntype = 'running'\nvalue = '127.0.0.1:9000'", "source.r.value", "source.live.listen"),
        (FILE + acme("a", "tcp", "nowhere"), "source.a.value", "host:port, such as"),
        (FILE + acme("a", "stdin") + "[source.b]\ntype = 'stdin'", "source.b.type", "one stdin source; source.a is it"),
        (FILE + acme("a", "socket", "s") + acme("b", "socket", "s"), "source.b.value", "source.a.value doesn't listen"),
        (FILE + acme("a", "input", "out/*"), "sink.scores.path", "a file that source.a.value doesn't read"),
        ("type = 'acme'\nvalue = 'in/x.jsonl'", "sink.scores.value", "a file that source.rides_in.path doesn't read"),
        (
            "type = 'acme'\nvalue = 'out/dead.jsonl'\n[dead_letter]\npath = '{folder}/out/dead.jsonl'",
            "dead_letter.path", "a file that sink.scores.value doesn't write",
        ),
    ],
)  # fmt: skip
def test_plugins_take_what_they_claim(tmp_path: Path, more: str, key: str, allowed: str) -> None:
    (problem,) = problems(tmp_path, more)
    assert problem.key == key
    assert allowed in problem.allowed


def test_claims_that_do_not_meet_are_no_problem(tmp_path: Path) -> None:
    assert problems(tmp_path, FILE + TCP + acme("a", "udp", "127.0.0.1:9000")) == []
    assert problems(tmp_path, FILE + acme("a", "tcp", "127.0.0.1:0") + acme("b", "tcp", "127.0.0.1:0")) == []


def problems(folder: Path, more: str) -> list[Any]:
    """Return what is wrong with a config in which paths of plugins are those that are written."""
    path = folder / "pipeline.toml"
    # Paths of built-in parts are made absolute; what a plugin claims is taken as it is.
    text = (
        (BASE + more).replace("value = 'in", f"value = '{folder}/in").replace("value = 'out", f"value = '{folder}/out")
    )
    path.write_text(text.replace("{folder}", str(folder)))
    try:
        load_config(path, find, environ={})
    except ConfigError as error:
        return list(error.problems)
    return []
