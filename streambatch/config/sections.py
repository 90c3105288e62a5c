"""From tables to options: which keys a section has, and the checked instance of every part.

Each part's options class says what it allows; here their findings get the full key as a person writes it. All
problems of all sections are found at once.
"""

import glob
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, TypeVar

from streambatch.config.draft import Draft
from streambatch.core.budget import Limits
from streambatch.core.errors import ConfigError, ConfigProblem, OptionError
from streambatch.core.options import options
from streambatch.core.schema import RecordSchema
from streambatch.delivery.dead_letters import DeadLetterOptions
from streambatch.durability.manifest import RunsOptions
from streambatch.durability.resume import Delivery
from streambatch.microbatch.inbox import QueueLimits
from streambatch.microbatch.window import BatchPolicy
from streambatch.net.addresses import ListenAddress, parse_address
from streambatch.observe.drift import DriftOptions
from streambatch.observe.tracing import OtelOptions
from streambatch.scoring.executors.choice import Workers

T = TypeVar("T")
Group = Literal["sources", "steps", "models", "sinks"]
Find = Callable[[Group, str | None], type[Any]]
"""Returns the options class of a part by its `type`; raises OptionError that lists what there is."""

NAME = re.compile(r"[a-z][a-z0-9_]*")
"""What pipelines, sources and sinks may be called."""
_TOKEN = re.compile(r"[!-~]+")
PATHS = ("path", "ca_file")
"""Options that name files."""
_INDEX = re.compile(r"\.(\d+)(?=\.|$)")
SECTIONS = (
    "source", "record", "queue", "limits", "batch", "preprocess", "model", "workers", "sink", "dead_letter", "delivery",
    "runs", "http", "drift", "otel",
)  # fmt: skip
"""The tables of a config, in the order of their reference."""


@options
class HttpOptions:
    """The admin port."""

    listen: ListenAddress = "127.0.0.1:9464"
    """Host and port of metrics, health, status and live page; `off` for none."""
    token: str | None = field(default=None, repr=False)
    """What the live page, `/status`, `/config` and `/-/` ask for unless `listen` is a loopback address: sent as
    `Authorization: Bearer TOKEN`, or once as `/?token=TOKEN`. Without it they answer nobody there."""

    lifecycle: bool = False
    """Answer `POST /-/reload`, which reads this file again."""

    def __post_init__(self) -> None:
        if self.token is not None and not _TOKEN.fullmatch(self.token):
            found = "characters that no header can hold" if self.token else "an empty string"
            raise OptionError("token", found, "one or more visible ASCII characters, such as ${ADMIN_TOKEN}")
        if self.listen != "off":
            try:
                parse_address(self.listen)
            except OptionError as error:
                raise OptionError("listen", error.found, f"{error.allowed}; or 'off'") from None


@dataclass(frozen=True, kw_only=True)
class Part:
    """A part and the `type` it was asked for by."""

    type: str
    options: Any


@dataclass(frozen=True, kw_only=True)
class Sections:
    """What the tables say; a section that has problems is None, a part with problems is absent."""

    name: str | None
    state_dir: str | None
    sources: Mapping[str, Part]
    record: RecordSchema | None
    queue: QueueLimits | None
    limits: Limits | None
    batch: BatchPolicy | None
    preprocess: tuple[Part, ...]
    model: Part | None
    workers: Workers | None
    sinks: Mapping[str, Part]
    dead_letter: DeadLetterOptions | None
    delivery: Delivery | None
    runs: RunsOptions | None
    http: HttpOptions | None
    drift: DriftOptions | None
    otel: OtelOptions | None


def read_sections(draft: Draft, find: Find) -> Sections:
    """Build every part that the draft names; problems are noted in the draft."""
    return _Reader(draft, find).read()


class _Reader:
    def __init__(self, draft: Draft, find: Find) -> None:
        self._draft, self._find = draft, find
        self._tables = draft.tables
        self._base = draft.path.parent

    def read(self) -> Sections:
        self._check_keys("", self._tables, ("name", "state_dir", *SECTIONS))
        return Sections(
            name=self._name(),
            state_dir=self._text("state_dir"),
            sources=self._named("source", "sources", "one or more tables, such as [source.rides_in]"),
            record=self._section("record", RecordSchema, is_required=True),
            queue=self._section("queue", QueueLimits),
            limits=self._section("limits", Limits),
            batch=self._section("batch", BatchPolicy),
            preprocess=self._steps(),
            model=self._model(),
            workers=self._section("workers", Workers),
            sinks=self._sink(),
            dead_letter=self._section("dead_letter", DeadLetterOptions, has_path=True),
            delivery=self._section("delivery", Delivery),
            runs=self._section("runs", RunsOptions),
            http=self._section("http", HttpOptions),
            drift=self._section("drift", DriftOptions),
            otel=self._section("otel", OtelOptions),
        )

    def _name(self) -> str | None:
        if "name" not in self._tables:
            self._draft.problem("name", "nothing", "a name of a-z, 0-9 and _ that starts with a letter (required)")
            return None
        name = self._text("name")
        return name if name is not None and self._is_name("name", name) else None

    def _text(self, key: str) -> str | None:
        value = self._tables.get(key)
        if value is None or isinstance(value, str):
            return value
        self._draft.problem(key, self._draft.shown(key, repr(value)), "a string")
        return None

    def _is_name(self, key: str, name: str) -> bool:
        if NAME.fullmatch(name):
            return True
        self._draft.problem(key, repr(name), "a name of a-z, 0-9 and _ that starts with a letter")
        return False

    def _section(self, key: str, cls: type[T], *, is_required: bool = False, has_path: bool = False) -> T | None:
        if key not in self._tables:
            if is_required:
                self._draft.problem(key, "nothing", f"a table [{key}] (required)")
                return None
            return cls()
        table = self._table(key, self._tables[key])
        if table is None:
            return None
        return self._build(key, cls, self._anchored(table) if has_path else table)

    def _named(self, key: str, group: Group, allowed: str) -> dict[str, Part]:
        """Build the parts of `[key.<name>]` tables."""
        tables = self._tables.get(key)
        if not isinstance(tables, dict) or not tables:
            self._draft.problem(key, "nothing" if not tables else self._draft.shown(key, repr(tables)), allowed)
            return {}
        parts = {}
        for name, value in tables.items():
            at = f"{key}.{name}"
            is_named = self._is_name(at, name)
            table = self._table(at, value)
            part = None if table is None else self._part(at, group, self._anchored(table), name=name)
            if part is not None and is_named:
                parts[name] = part
        return parts

    def _sink(self) -> dict[str, Part]:
        tables = self._tables.get("sink")
        allowed = "exactly one table, such as [sink.scores]"
        if isinstance(tables, dict) and len(tables) > 1:
            self._draft.problem("sink", f"{len(tables)} tables ({', '.join(tables)})", allowed)
        return self._named("sink", "sinks", allowed)

    def _model(self) -> Part | None:
        if "model" not in self._tables:
            self._draft.problem("model", "nothing", "a table [model] (required)")
            return None
        table = self._table("model", self._tables["model"])
        return None if table is None else self._part("model", "models", table)

    def _steps(self) -> tuple[Part, ...]:
        tables = self._tables.get("preprocess", [])
        if not isinstance(tables, list):
            self._draft.problem("preprocess", self._draft.shown("preprocess", repr(tables)), "tables [[preprocess]]")
            return ()
        parts = []
        for at, value in enumerate(tables):
            table = self._table(f"preprocess[{at}]", value)
            parts.append(None if table is None else self._part(f"preprocess[{at}]", "steps", table))
        return tuple(part for part in parts if part is not None)

    def _part(self, key: str, group: Group, table: Mapping[str, Any], *, name: str | None = None) -> Part | None:
        """Find the class that `type` names and build it from the other keys."""
        kind = table.get("type")
        if kind is not None and not isinstance(kind, str):
            self._draft.problem(f"{key}.type", self._draft.shown(f"{key}.type", repr(kind)), "a string")
            return None
        try:
            cls = self._find(group, kind)
        except OptionError as error:
            self._draft.problem(f"{key}.type", str(error.found), error.allowed)
            return None
        rest = {option: value for option, value in table.items() if option != "type"}
        built = self._build(key, cls, rest, name=name)
        return None if built is None else Part(type=str(kind), options=built)

    def _build(self, key: str, cls: Callable[..., T], table: Mapping[str, Any], *, name: str | None = None) -> T | None:
        """Build options from the keys that their class has; a wrong or unknown key is a problem."""
        known = [option.name for option in option_fields(cls) if option.name != "name"]
        before = len(self._draft.problems)
        self._check_keys(key, table, known)
        given = {option: value for option, value in table.items() if option in known}
        try:
            built = cls(**given) if name is None else cls(**given, name=name)
        except ConfigError as error:
            for problem in _innermost(error.problems):
                self._blame(key, problem.key, problem.found, problem.allowed)
            return None
        except OptionError as error:
            self._blame(key, error.option, str(error.found), error.allowed)
            return None
        for option, value in given.items():
            if isinstance(value, bool) and not isinstance(getattr(built, option), bool):
                self._blame(key, option, str(value).lower(), "a number")
        return built if len(self._draft.problems) == before else None

    def _blame(self, key: str, option: str, found: str, allowed: str) -> None:
        full = _INDEX.sub(r"[\1]", f"{key}.{option}") if option else key
        self._draft.problem(full, self._draft.shown(full, found), allowed)

    def _check_keys(self, key: str, table: Mapping[str, Any], known: Iterable[str]) -> None:
        choices = list(known)
        for option in table:
            if option not in choices:
                full = f"{key}.{option}".lstrip(".")
                close = get_close_matches(option, choices, n=1)
                hint = f"; did you mean {close[0]}?" if close else ""
                found = self._draft.shown(full, repr(table[option]))
                self._draft.problem(full, f"an unknown key ({found})", ", ".join(choices) + hint)

    def _table(self, key: str, value: object) -> dict[str, Any] | None:
        if isinstance(value, dict):
            return value
        self._draft.problem(key, self._draft.shown(key, repr(value)), "a table")
        return None

    def _anchored(self, table: Mapping[str, Any]) -> dict[str, Any]:
        """Return the table with its paths relative to the config file's folder."""
        anchored: dict[str, Any] = {key: self._anchor(table[key]) for key in PATHS if isinstance(table.get(key), str)}
        paths = table.get("path")
        if isinstance(paths, list):
            anchored["path"] = [self._anchor(one) if isinstance(one, str) else one for one in paths]
        return {**table, **anchored}

    def _anchor(self, path: str) -> str:
        base = Path(glob.escape(str(self._base))) if glob.has_magic(path) else self._base
        return str(base / path) if path else path


def _innermost(problems: Sequence[ConfigProblem]) -> list[ConfigProblem]:
    """Leave out what is said of a list as a whole where one of its items is to blame."""
    keys = [problem.key for problem in problems]
    return [problem for problem in problems if not any(key.startswith(f"{problem.key}.") for key in keys)]


def option_fields(cls: Any) -> list[Any]:
    """Return the dataclass fields of an options class that a config may set."""
    return [option for option in fields(cls) if option.init]
