"""Parts found by entry point, built-in or of packages that somebody else installed."""

from pathlib import Path

import pytest

from streambatch.config.assemble import load_config
from streambatch.config.plugins import find_part, installed
from streambatch.connectors.memory.none import NoneSink
from streambatch.core.errors import ConfigError, OptionError


class Installed:
    """Installs packages into a folder on sys.path, as pip leaves them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, package: str, entries: str, source: str = "") -> None:
        module = package.replace("-", "_")
        (self.folder / f"{module}.py").write_text(source)
        info = self.folder / f"{module}-1.2.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.2\n")
        (info / "entry_points.txt").write_text(f"[streambatch.sinks]\n{entries}\n")


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Installed:
    monkeypatch.syspath_prepend(tmp_path)
    return Installed(tmp_path)


def refusal(name: str | None) -> tuple[str, str]:
    with pytest.raises(OptionError) as caught:
        find_part("sinks", name)
    assert caught.value.option == "type"
    meant = f"did you mean {caught.value.meant}? " if caught.value.meant else ""
    return str(caught.value.found), meant + caught.value.allowed


def test_built_in_parts_are_found() -> None:
    assert find_part("sinks", "none") is NoneSink
    for group, names in {
        "sources": ["file", "tcp", "unix", "stdin"],
        "steps": ["standardize", "minmax", "clip", "impute", "python"],
        "models": ["linear", "python"],
    }.items():
        for name in names:
            assert isinstance(find_part(group, name), type)  # type: ignore[arg-type]  # the groups of pyproject.toml


def test_an_unknown_name_lists_what_there_is() -> None:
    names = ", ".join(installed("sinks"))
    assert {"file", "none", "stdout"} <= set(installed("sinks"))
    assert refusal("kafka") == ("'kafka'", names)
    assert refusal("flie") == ("'flie'", f"did you mean file? {names}")
    assert refusal(None) == ("nothing", names)


def test_somebody_elses_part_works_from_a_config(install: Installed, tmp_path: Path) -> None:
    install(
        "their-sink",
        "theirs = their_sink:TheirSink",
        "from streambatch.core.options import options\n@options\nclass TheirSink:\n"
        "    topic: str\n    name: str = ''\n    format = 'jsonl'\n",
    )
    path = tmp_path / "pipeline.toml"
    config = """
        name = "a"
        [source.s]
        type = "stdin"
        [record]
        features = ["x"]
        [model]
        type = "linear"
        path = "m.npz"
        [sink.scores]
        type = "theirs"
        """
    path.write_text(config + 'topic = "t"')
    assert load_config(path, environ={}).sink.options.topic == "t"
    path.write_text(config + 'topik = "t"')
    with pytest.raises(ConfigError) as caught:
        load_config(path, environ={})
    assert [str(problem) for problem in caught.value.problems] == [
        "sink.scores.topik: found an unknown key ('t'); did you mean topic? allowed: topic",
        "sink.scores.topic: found nothing; allowed: a string (required)",
    ]


def test_a_package_that_breaks_is_named(install: Installed) -> None:
    install("broken-sink", "broken = broken_sink:Sink", "import no_such_library_of_theirs")
    assert refusal("broken") == (
        "'broken', which can't be imported (ModuleNotFoundError: No module named 'no_such_library_of_theirs')",
        "a part whose package, here broken-sink 1.2, works",
    )


def test_a_broken_package_troubles_nobody_else(install: Installed) -> None:
    install("other-broken-sink", "other = other_broken_sink:Sink", "raise RuntimeError('no')")
    assert find_part("sinks", "none") is NoneSink


def test_what_is_registered_must_be_there_and_a_class(install: Installed) -> None:
    install("empty-sink", "lost = empty_sink:Sink\nmodule = empty_sink")
    assert "AttributeError" in refusal("lost")[0]
    assert refusal("module") == ("'module', which is no class", "a class at empty_sink in empty-sink 1.2")


def test_a_name_that_two_packages_claim(install: Installed) -> None:
    install("first-sink", "twice = first_sink:Sink", "class Sink: ...")
    install("second-sink", "twice = second_sink:Sink", "class Sink: ...")
    assert refusal("twice") == (
        "'twice', which first-sink 1.2 and second-sink 1.2 both provide",
        "one of them installed",
    )
