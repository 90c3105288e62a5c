"""The config: where each value comes from, what is refused and in which words, what is shown of it."""

import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streambatch.config.assemble import load_config
from streambatch.config.config import Config
from streambatch.config.plugins import installed
from streambatch.config.sections import OPTIONS, is_required
from streambatch.config.sections import SECTIONS as SECTIONS_IN_ORDER
from streambatch.core.errors import ConfigError, ConfigProblem, OptionError
from streambatch.core.options import options
from streambatch.core.units import Size

MINIMAL = """
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
    type = "file"
    path = "out/scores.jsonl"
    """
TCP = '[source.live]\ntype = "tcp"\nlisten = "127.0.0.1:9000"\n'


class Loader:
    """Writes a config and reads it, with no environment but what is passed."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "pipeline.toml"

    def __call__(self, text: str, *overrides: str, environ: Mapping[str, str] | None = None) -> Config:
        self.path.write_text(text)
        return load_config(self.path, overrides=overrides, environ=environ or {})

    def problems(self, text: str, *overrides: str, environ: Mapping[str, str] | None = None) -> list[tuple[str, ...]]:
        with pytest.raises(ConfigError) as caught:
            self(text, *overrides, environ=environ)
        return [(problem.key, problem.found, _hinted(problem)) for problem in caught.value.problems]

    def problem(self, text: str, *overrides: str, environ: Mapping[str, str] | None = None) -> tuple[str, ...]:
        (problem,) = self.problems(text, *overrides, environ=environ)
        return problem


def _hinted(problem: ConfigProblem) -> str:
    return f"did you mean {problem.meant}? {problem.allowed}" if problem.meant else problem.allowed


@pytest.fixture
def load(tmp_path: Path) -> Loader:
    return Loader(tmp_path)


def test_what_is_absent_has_its_default(load: Loader, tmp_path: Path) -> None:
    config = load(MINIMAL)
    assert config.name == "rides"
    assert config.state_dir == tmp_path / ".streambatch" / "rides"
    assert (config.batch.max_records, config.batch.max_bytes, config.batch.max_wait) == (512, 4 << 20, 0.05)
    assert config.http.listen == "127.0.0.1:9464"
    assert (config.workers.executor, config.workers.count) == ("thread", 1)
    assert config.preprocess == ()


def test_paths_are_relative_to_the_config(load: Loader, tmp_path: Path) -> None:
    text = MINIMAL.replace('"in/*.jsonl"', '["in/*.jsonl", "/abs/a.jsonl"]').replace("rides_in", "a") + (
        '[source.b]\ntype = "unix"\npath = "in.sock"\n[dead_letter]\npath = "dead.jsonl"\n'
    )
    config = load('state_dir = "state"\n' + text)
    a, b = (part.options for part in config.sources)
    assert a.path == [str(tmp_path / "in/*.jsonl"), "/abs/a.jsonl"]
    assert b.path == tmp_path / "in.sock"
    assert config.sink.options.path == str(tmp_path / "out/scores.jsonl")
    assert config.dead_letter.path == str(tmp_path / "dead.jsonl")
    assert config.state_dir == tmp_path / "state"
    assert config.folder == tmp_path


def test_a_folder_that_looks_like_a_glob_is_taken_literally(tmp_path: Path) -> None:
    folder = tmp_path / "a[b]"
    (folder / "in").mkdir(parents=True)
    (folder / "in/1.jsonl").touch()
    config = Loader(folder)(MINIMAL)
    assert [part.options.path for part in config.sources] == [str(tmp_path / "a[[]b]" / "in/*.jsonl")]
    assert config.sink.options.path == str(folder / "out/scores.jsonl")


def test_systemd_says_where_state_goes(load: Loader, tmp_path: Path) -> None:
    environ = {"STATE_DIRECTORY": "/var/lib/rides:/var/lib/other"}
    assert load(MINIMAL, environ=environ).state_dir == Path("/var/lib/rides")
    assert load('state_dir = "mine"\n' + MINIMAL, environ=environ).state_dir == tmp_path / "mine"


def test_set_beats_environment_beats_file(load: Loader) -> None:
    text = MINIMAL + "[batch]\nmax_records = 1\nmax_bytes = 1\nmax_wait = 1\n"
    environ = {"STREAMBATCH_BATCH__MAX_RECORDS": "2", "STREAMBATCH_BATCH__MAX_BYTES": "2KiB"}
    batch = load(text, "batch.max_records=3", environ=environ).batch
    assert (batch.max_records, batch.max_bytes, batch.max_wait) == (3, 2048, 1.0)


def test_the_last_set_wins(load: Loader) -> None:
    assert load(MINIMAL, "batch.max_records=3", "batch.max_records=4").batch.max_records == 4


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("record.carry=['ts', 'b']", ["ts", "b"]),
        ("record.features=['a', 'b']", ["a", "b"]),
        ("record.id=key", "key"),
        ("record.id=2024-01-01", "2024-01-01"),
        ("record.id=nan", "nan"),
        ("record.id='a=b'", "a=b"),
        ("record.id=a=b", "a=b"),
        ("record.id=1\nname = 2", "1\nname = 2"),
    ],
)
def test_values_are_toml_where_they_can_be(load: Loader, override: str, expected: object) -> None:
    text = MINIMAL.replace("shape = [10]", "") if "features" in override else MINIMAL
    assert getattr(load(text, override).record, override.partition("=")[0].removeprefix("record.")) == expected


def test_overrides_reach_into_lists_and_make_tables(load: Loader) -> None:
    text = MINIMAL + '[[preprocess]]\ntype = "standardize"\nmean = 0\nscale = 1\n'
    (step,) = load(text, "preprocess[0].scale=2.5", environ={"STREAMBATCH_PREPROCESS__0__MEAN": "1.5"}).preprocess
    assert (step.options.mean, step.options.scale) == (1.5, 2.5)
    assert load(MINIMAL, "workers.count=3").workers.count == 3


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("name.x=1", "name.x (from --set)"),
        ("record.shape.x=1", "record.shape.x (from --set)"),
        ("record.shape[9]=1", "record.shape[9] (from --set)"),
        ("preprocess[0].scale=1", "preprocess (from --set)"),
    ],
)
def test_overrides_that_lead_nowhere(load: Loader, override: str, key: str) -> None:
    assert load.problem(MINIMAL, override)[0] == key


def test_overrides_that_are_none(load: Loader) -> None:
    assert load.problem(MINIMAL, "batch.max_records") == (
        "--set", "'batch.max_records'", "KEY=VALUE, such as batch.max_records=256",
    )  # fmt: skip
    assert load.problem(MINIMAL, "=3")[0] == "--set"


def test_an_override_is_named_where_it_is_wrong(load: Loader) -> None:
    environ = {"STREAMBATCH_BATCH__MAX_RECORDS": "many"}
    assert load.problem(MINIMAL, environ=environ) == (
        "batch.max_records (from STREAMBATCH_BATCH__MAX_RECORDS)", "'many'", "an integer",
    )  # fmt: skip
    assert load.problem(MINIMAL, "batch.max_records=0")[0] == "batch.max_records (from --set)"


def test_what_lies_in_an_overridden_table_has_no_line_of_the_file(load: Loader) -> None:
    with pytest.raises(ConfigError) as caught:
        load(f'{MINIMAL}\n[[preprocess]]\ntype = "clip"\nlow = 0\n', 'preprocess=[{type="nope"}]')
    assert str(caught.value).startswith(f"{load.path}: preprocess[0].type: found 'nope'")


def test_an_unknown_variable_is_a_problem(load: Loader) -> None:
    key, _, allowed = load.problem(MINIMAL, environ={"STREAMBATCH_BATHC__MAX_RECORDS": "1"})
    assert key == "bathc (from STREAMBATCH_BATHC__MAX_RECORDS)"
    assert allowed.startswith("did you mean batch? ")


def test_what_kubernetes_sets_is_none_of_ours(load: Loader) -> None:
    load(
        MINIMAL,
        environ={
            "STREAMBATCH_SERVICE_HOST": "10.0.0.1",
            "STREAMBATCH_SERVICE_PORT": "9464",
            "STREAMBATCH_SERVICE_PORT_METRICS": "9464",
            "STREAMBATCH_PORT": "tcp://10.0.0.1:9464",
            "STREAMBATCH_PORT_9464_TCP": "tcp://10.0.0.1:9464",
            "STREAMBATCH_PORT_9464_TCP_ADDR": "10.0.0.1",
        },
    )


@pytest.mark.parametrize(
    ("text", "environ", "expected"),
    [
        ("${FIELD}", {"FIELD": "key"}, "key"),
        ("a-${FIELD}-${FIELD}", {"FIELD": "key"}, "a-key-key"),
        ("${FIELD:-other}", {}, "other"),
        ("${FIELD:-other}", {"FIELD": ""}, "other"),
        ("${FIELD:-other}", {"FIELD": "key"}, "key"),
        ("${FIELD:?say which}", {"FIELD": "key"}, "key"),
        ("$${FIELD}", {"FIELD": "key"}, "${FIELD}"),
        ("$FIELD", {"FIELD": "key"}, "$FIELD"),
        ("${FIELD}", {"FIELD": "${OTHER}"}, "${OTHER}"),
    ],
)
def test_variables_are_put_in(load: Loader, text: str, environ: Mapping[str, str], expected: str) -> None:
    assert load(MINIMAL, f"record.id={text}", environ=environ).record.id == expected


def test_variables_may_hold_numbers(load: Loader) -> None:
    config = load(MINIMAL + '[batch]\nmax_records = "${N}"\nmax_wait = "${WAIT}"\n', environ={"N": "7", "WAIT": "5ms"})
    assert (config.batch.max_records, config.batch.max_wait) == (7, 0.005)


@pytest.mark.parametrize(
    ("text", "found", "allowed"),
    [
        ("${FIELD}", "${FIELD}, which is not set", "a value in the environment variable FIELD"),
        ("${FIELD:?say which}", "${FIELD}, which is not set: say which", "a value in the environment variable FIELD"),
        ("${FIELD", "'${FIELD'", "${VAR}, ${VAR:-default} or ${VAR:?message}; $${ for a plain ${"),
        ("${A B}", "'${A B}'", "${VAR}, ${VAR:-default} or ${VAR:?message}; $${ for a plain ${"),
    ],
)
def test_variables_that_are_not_there(load: Loader, text: str, found: str, allowed: str) -> None:
    assert load.problem(MINIMAL + f'[dead_letter]\npath = "{text}"\n') == ("dead_letter.path", found, allowed)


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("name = ", "line 1, column 8"),
        ("\n\n[record\n", "line 3, column 8"),
        ('name = "a"\nname = "b"\n', "line 2, column 11"),
        ("a = " + "[" * 5000, "file"),
    ],
)
def test_what_is_not_toml_is_told_by_its_place(load: Loader, text: str, key: str) -> None:
    assert load.problem(text)[0] == key


def test_files_that_are_no_configs(tmp_path: Path) -> None:
    path = tmp_path / "pipeline.toml"
    with pytest.raises(ConfigError, match=r"pipeline\.toml: file: found no such file or directory"):
        load_config(path)
    path.write_bytes(b'name = "\xff"')
    with pytest.raises(ConfigError, match="byte 8: found text that is not UTF-8"):
        load_config(path)
    with pytest.raises(ConfigError, match="found is a directory"):
        load_config(tmp_path)


def test_a_byte_order_mark_and_windows_lines_are_fine(tmp_path: Path) -> None:
    path = tmp_path / "pipeline.toml"
    path.write_bytes(b"\xef\xbb\xbf" + MINIMAL.replace("\n", "\r\n").encode())
    assert load_config(path, environ={}).name == "rides"


def test_an_empty_config_says_all_that_is_missing(load: Loader) -> None:
    assert [key for key, _, _ in load.problems("")] == ["name", "source", "record", "model", "sink"]


def test_five_mistakes_are_five_problems(load: Loader) -> None:
    text = """
        name = "rides"
        [source.rides_in]
        type = "file"
        path = "in/*.jsonl"
        max_record_bytes = "1 Mb"
        [record]
        features = "features"
        shape = [10, "x"]
        [[preprocess]]
        type = "clip"
        low = 0
        [[preprocess]]
        type = "standardize"
        mean = [0.0]
        [workers]
        executor = "process"
        [batch]
        max_recods = 10
        [model]
        type = "linear"
        path = "model.npz"
        [sink.scores]
        type = "stdout"
        """
    assert load.problems(text) == [
        ("source.rides_in.max_record_bytes", "'1 Mb'", "a size such as 512, 64KiB, 4MiB or 1GiB"),
        ("record.shape[1]", "'x'", "an integer"),
        ("batch.max_recods", "an unknown key (10)", "did you mean max_records? max_records, max_bytes, max_wait"),
        ("preprocess[1].scale", "nothing", "mean and scale together"),
        ("workers.executor", "'process'", "'inline' or 'thread'"),
    ]


@pytest.mark.parametrize(
    ("override", "key", "allowed"),
    [
        ("name=Rides", "name", "a name of a-z"),
        ("name=1", "name", "a string"),
        ("name=true", "name", "a string"),
        ("state_dir=1", "state_dir", "a string"),
        ("source=1", "source", "one or more tables"),
        ("source.rides_in=1", "source.rides_in", "a table"),
        ("source.Rides={type='stdin'}", "source.Rides", "a name of a-z"),
        ("source.rides_in.type=kafka", "source.rides_in.type", ", ".join(installed("sources"))),
        ("source.rides_in.type=flie", "source.rides_in.type", "did you mean file? " + ", ".join(installed("sources"))),
        ("source.rides_in.type=1", "source.rides_in.type", "a string"),
        ("source.rides_in={path='x'}", "source.rides_in.type", ", ".join(installed("sources"))),
        ("source.rides_in.name=x", "source.rides_in.name", "path, follow"),
        ("source.rides_in.spool={max_bytes='1GiB'}", "source.rides_in.spool", "path, follow"),
        ("source.rides_in.path=[1]", "source.rides_in.path[0]", "a string"),
        ("source.rides_in.follow=maybe", "source.rides_in.follow", "true or false"),
        ("record=1", "record", "a table"),
        ("record.carry=0", "record.carry", "a list"),
        ("queue.max_records=0", "queue.max_records", "at least 1"),
        ("batch.max_records=true", "batch.max_records", "a number"),
        ("batch.max_records=1.5", "batch.max_records", "an integer"),
        ("batch.max_wait=5x", "batch.max_wait", "a duration"),
        ("batch.target_latency=100ms", "batch.target_latency", "max_records, max_bytes, max_wait"),
        ("limits.memory=1MiB", "limits.memory", "at least 8MiB"),
        ("preprocess=1", "preprocess", "tables [[preprocess]]"),
        ("preprocess=[1]", "preprocess[0]", "a table"),
        ("preprocess=[{type='scale'}]", "preprocess[0].type", "clip, impute, minmax, python, standardize"),
        ("preprocess=[{type='clip', low=0, hihg=1}]", "preprocess[0].hihg", "did you mean high? low, high"),
        ("model=1", "model", "a table"),
        ("model.type=onnx", "model.type", "linear, python"),
        ("model.sha256=abc", "model.sha256", "a sha256"),
        ("sink.scores.type=kafka", "sink.scores.type", ", ".join(installed("sinks"))),
        ("sink.scores.format=xml", "sink.scores.format", "'jsonl', 'csv', 'arrow' or 'parquet'"),
        ("sink.scores.rotate={}", "sink.scores.rotate.max_bytes", "one of them"),
        ("sink.scores.rotate={max_age=0}", "sink.scores.rotate.max_age", "more than 0"),
        ("sink.scores.rotate={max_files=3}", "sink.scores.rotate.max_files", "no such key"),
        ("sink.scores.compression=lzma", "sink.scores.compression", "'none', 'gzip' or 'zstd'"),
        ("dead_letter.rotate={max_bytes='x'}", "dead_letter.rotate.max_bytes", "a size such as"),
        ("record.carry={ts='text'}", "record.carry.ts", "'string' or 'timestamp'"),
        ("sink.second={type='none'}", "sink", "exactly one table"),
        ("dead_letter.stop_at=2", "dead_letter.stop_at", "at most 1"),
        ("delivery.drain_timeout=-1", "delivery.drain_timeout", "at least 0"),
        ("http.listen=9464", "http.listen", 'a string "host:port", such as "127.0.0.1:9464"'),
        ("source.rides_in={type='tcp', listen=9000}", "source.rides_in.listen", 'a string "host:port", such as'),
        (
            "source.rides_in={type='tcp', listen='h:1', spool={max_bytes='1KiB'}}",
            "source.rides_in.spool.max_bytes", "at least 1 MiB",
        ),
        ("source.rides_in={type='udp', listen='h:1', receive_buffer=1}", "source.rides_in.receive_buffer", "4 KiB"),
        ("batch.max_bytes=0", "batch.max_bytes", "at least 1 B"),
        ("http.listen=localhost", "http.listen", "host:port"),
        ("http.page=true", "http.page", "listen"),
        ("runs.keep=soon", "runs.keep", "a duration such as"),
    ],
)  # fmt: skip
def test_what_is_refused(load: Loader, override: str, key: str, allowed: str) -> None:
    problems = load.problems(MINIMAL, override)
    assert len(problems) == 1, problems
    assert problems[0][0].removesuffix(" (from --set)") == key
    assert allowed in problems[0][2]


def test_messages_name_the_file(load: Loader) -> None:
    with pytest.raises(ConfigError) as caught:
        load(MINIMAL, "batch.max_records=0")
    assert str(caught.value) == f"{load.path}: batch.max_records (from --set): found 0; allowed: at least 1"


@pytest.mark.parametrize(
    ("more", "key", "allowed"),
    [
        ("[batch]\nmax_records = 70000", "batch.max_records", "at most queue.max_records (65536)"),
        ("[queue]\nmax_records = 100", "queue.max_records", "at least batch.max_records (512)"),
        ("[batch]\nmax_bytes = '65MiB'", "batch.max_bytes", "at most queue.max_bytes (64 MiB)"),
        ("[queue]\nmax_bytes = '1GiB'", "queue.max_bytes", "at most limits.memory (256 MiB)"),
        ("[http]\nlisten = '127.0.0.1:9000'\n" + TCP, "http.listen", "source.live.listen doesn't listen on"),
        ("[http]\nlisten = '0.0.0.0:9000'\n" + TCP, "http.listen", "source.live.listen doesn't listen on"),
        (TCP + TCP.replace("live", "more"), "source.more.listen", "source.live.listen doesn't listen on"),
        ('[source.a]\ntype = "stdin"\n[source.b]\ntype = "stdin"', "source.b.type", "source.a is it"),
        (
            '[source.a]\ntype = "unix"\npath = "s"\n[source.b]\ntype = "unix"\npath = "s"',
            "source.b.path", "source.a.path doesn't listen on",
        ),
        ("[dead_letter]\npath = 'out/scores.jsonl'", "dead_letter.path", "sink.scores.path doesn't write"),
        ("[dead_letter]\npath = 'in/dead.jsonl'", "dead_letter.path", "source.rides_in.path doesn't read"),
        (
            "[source.again]\ntype = 'file'\npath = 'out/d-*.jsonl'\n"
            "[dead_letter]\npath = 'out/d.jsonl'\nrotate = { max_age = 1 }",
            "dead_letter.path", "source.again.path doesn't read",
        ),
        ("[dead_letter]\npath = 'out/../in/dead.jsonl'", "dead_letter.path", "source.rides_in.path doesn't read"),
        ('[source.a]\ntype = "stdin"\nformat = "csv"', "record.features", "a list of fields"),
        ('[[preprocess]]\ntype = "impute"\nvalue = 0', "preprocess[0].type", "record.missing = 'nan'"),
    ],
)  # fmt: skip
def test_what_contradicts_itself(load: Loader, more: str, key: str, allowed: str) -> None:
    found, _, said = load.problem(MINIMAL + more)
    assert found == key
    assert allowed in said


@pytest.mark.parametrize(
    ("pattern", "is_read"),
    [
        ("out/scores.jsonl", True),
        ("out/*", True),
        ("*/scores.jsonl", True),
        ("**/*.jsonl", True),
        ("**/out/**/scores.*", True),
        ("out/**", True),
        ("**", True),
        ("*.jsonl", False),
        ("out/*.csv", False),
        ("out", False),
        ("out/scores.jsonl/x", False),
    ],
)
def test_an_output_that_is_an_input(load: Loader, pattern: str, is_read: bool) -> None:
    # The default dead letters are in a hidden folder, which no glob here descends into.
    text = MINIMAL.replace("in/*.jsonl", pattern)
    if is_read:
        assert load.problem(text)[0] == "sink.scores.path"
    else:
        load(text)


def test_little_memory_needs_no_smaller_queue(load: Loader) -> None:
    assert load(MINIMAL, "limits.memory=8MiB").queue.max_bytes == 64 << 20


def test_ports_that_the_system_chooses_never_clash(load: Loader) -> None:
    load(MINIMAL + TCP.replace("9000", "0") + "[http]\nlisten = '127.0.0.1:0'\n")


def test_the_effective_config_is_json_and_whole(load: Loader, tmp_path: Path) -> None:
    effective = json.loads(json.dumps(load(MINIMAL).effective))
    assert effective["batch"] == {"max_records": 512, "max_bytes": 4 << 20, "max_wait": 0.05}
    assert effective["source"]["rides_in"]["path"] == str(tmp_path / "in/*.jsonl")
    assert effective["sink"]["scores"]["type"] == "file"
    assert "name" not in effective["sink"]["scores"]
    assert list(effective) == [
        "name", "state_dir", "source", "record", "queue", "limits", "batch", "preprocess", "model", "workers",
        "dead_letter", "delivery", "runs", "http", "drift", "otel", "sink",
    ]  # fmt: skip


def test_the_digest_tells_configs_apart(tmp_path: Path) -> None:
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
    here, there = (Loader(folder)(MINIMAL).digest for folder in folders)
    assert here == there
    assert len(here) == 64
    assert Loader(folders[0])(MINIMAL + "# a remark\n").digest == here
    assert Loader(folders[0])(MINIMAL, "batch.max_records=511").digest != here


def test_the_digest_takes_names_that_are_not_utf_8(load: Loader) -> None:
    names = ("caf\udce9.jsonl", "/caf\udce9.jsonl", "/caf\udcea.jsonl")
    assert len({load(MINIMAL, f"sink.scores.path={name}").digest for name in names}) == 3


def test_a_name_that_is_not_utf_8_is_shown_as_everywhere(load: Loader) -> None:
    assert load.problem(MINIMAL, "record.dtype=caf\udce9")[1] == r"'caf\xe9'"
    assert load.problem(MINIMAL, "name=caf\udce9")[1] == r"'caf\xe9'"


@options
class Secretive:
    """A sink of somebody else's."""

    url: str
    password: str = ""
    level: int = 0
    label: str = ""
    nested: dict[str, str] | None = None
    limit: Size = 1
    name: str = ""

    format = "jsonl"


def find_secretive(group: str, name: str | None) -> type[Any]:
    if group == "sinks" and name == "secretive":
        return Secretive
    from streambatch.config.plugins import find_part

    return find_part(group, name)  # type: ignore[arg-type]  # a test gives any text


SECRETIVE = MINIMAL.replace('type = "file"\n    path = "out/scores.jsonl"', 'type = "secretive"')


def load_secretive(folder: Path, more: str, environ: Mapping[str, str]) -> Config:
    from streambatch.config.config import load_config as load_with

    path = folder / "pipeline.toml"
    path.write_text(SECRETIVE + more)
    return load_with(path, find_secretive, environ=environ)


def test_secrets_are_not_shown(tmp_path: Path) -> None:
    more = """
        url = "https://me:${PLAIN}@host/x?y=z"
        password = "hunter2"
        label = "${API_TOKEN}"
        nested = { key = "hunter3", other = "seen" }
        """
    config = load_secretive(tmp_path, more, {"API_TOKEN": "hunter4", "PLAIN": "hunter5"})
    assert config.sink.options.password == "hunter2"
    assert config.sink.options.label == "hunter4"
    shown = config.effective["sink"]["scores"]
    assert "hunter" not in json.dumps(config.effective)
    assert shown["url"] == "https://***@host/x?y=z"
    assert shown["nested"] == {"key": "***", "other": "seen"}
    changed = load_secretive(tmp_path, more.replace("hunter2", "other"), {"API_TOKEN": "x", "PLAIN": "y"})
    assert changed.digest == config.digest


@pytest.mark.parametrize("key", ["level", "limit", "unknown"])
def test_secrets_are_not_in_messages(tmp_path: Path, key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_secretive(tmp_path, f'url = ""\n{key} = "${{DB_PASSWORD}}"\n', {"DB_PASSWORD": "hunter2"})
    assert "hunter2" not in str(caught.value)
    assert f"sink.scores.{key}: found" in str(caught.value)


def test_a_plugins_own_check_gets_the_full_key(tmp_path: Path) -> None:
    class Picky:
        def __init__(self, **_: object) -> None:
            raise OptionError("size", 3, "4")

    from streambatch.config.config import load_config as load_with

    def find(group: str, name: str | None) -> type[Any]:
        return Picky if group == "models" else find_secretive(group, name)

    Picky.__dataclass_fields__ = {}  # type: ignore[attr-defined]  # what makes a class a dataclass
    path = tmp_path / "pipeline.toml"
    path.write_text(MINIMAL.replace('path = "model.npz"', ""))
    with pytest.raises(ConfigError, match=r"model\.size: found 3; allowed: 4"):
        load_with(path, find, environ={})


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | TEXTS
NONSENSE = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3), max_leaves=8
)
SECTIONS = [*tomllib.loads(MINIMAL), "batch", "queue", "limits", "preprocess", "workers", "http", "delivery"]


@given(st.dictionaries(st.sampled_from(SECTIONS) | TEXTS, NONSENSE, max_size=4))
def test_nonsense_is_refused_and_never_crashes(tables: Mapping[str, Any]) -> None:
    from streambatch.config.crosschecks import cross_check
    from streambatch.config.draft import Draft
    from streambatch.config.plugins import find_part
    from streambatch.config.sections import read_sections

    draft = Draft(Path("/x/pipeline.toml"), {**tomllib.loads(MINIMAL), **tables})
    cross_check(draft, read_sections(draft, find_part), Path("/x/state"))


@given(st.lists(st.tuples(TEXTS, TEXTS), max_size=3))
def test_overrides_of_any_text_never_crash(pairs: Sequence[tuple[str, str]]) -> None:
    from streambatch.config.draft import read_draft

    path = Path(__file__).parents[2] / "pyproject.toml"
    overrides = [f"{key}={value}" for key, value in pairs]
    read_draft(path, overrides, {f"STREAMBATCH_{key}": value for key, value in pairs})


def test_every_section_has_its_place() -> None:
    assert {*SECTIONS_IN_ORDER} == {*OPTIONS, "source", "preprocess", "model", "sink"}
    assert list(OPTIONS) == [section for section in SECTIONS_IN_ORDER if section in OPTIONS]
    assert [section for section in OPTIONS if is_required(section)] == ["record"]
