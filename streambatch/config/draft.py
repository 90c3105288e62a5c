"""Merge a config from its file, the environment and `--set`, and replace `${VAR}` in its texts.

`--set` wins over the environment, which wins over the file. This module knows TOML and tables but no section. It
records where each key came from that the file doesn't hold, and which values are secret.
"""

import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, time
from functools import partial
from math import isfinite
from pathlib import Path
from typing import Any

from streambatch.config.credentials import read_credential
from streambatch.config.lines import line_of
from streambatch.core.errors import ConfigError, ConfigProblem
from streambatch.core.redaction import looks_secret
from streambatch.core.text import repr_encodable

PREFIX = "STREAMBATCH_"
TomlTable = dict[str, Any]

_SET_BY_KUBERNETES = re.compile(r"(SERVICE_(HOST|PORT(_\w+)?)|PORT(_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)")
"""Variables that Kubernetes sets in every pod beside a service called streambatch; they are no overrides."""
OF_COMMANDS = ("LOG_LEVEL", "LOG_FORMAT", "TOKEN")
"""Other variables with the prefix: they set options of commands, not keys of a config."""
_WHERE = re.compile(r" \(at (?:line (\d+), column (\d+)|end of document)\)$")
_STEP = re.compile(r"[^.\[\]]+|\[\d+\]")
_REFERENCE = re.compile(r"\$(\$\{)|\$\{([A-Za-z_]\w*)(?:(:-|:\?)([^}]*))?\}|(\$\{[^}]*\}?)")


@dataclass
class Draft:
    """The merged tables of a config, and the problems found so far."""

    path: Path
    tables: TomlTable
    text: str = ""
    """The file's text, for the lines in messages."""
    origins: dict[str, str] = field(default_factory=dict)
    """Where a key came from that the file doesn't hold, by dotted key."""
    secrets: set[str] = field(default_factory=set)
    """Dotted keys whose values are never shown."""
    problems: list[ConfigProblem] = field(default_factory=list)

    def problem(self, key: str, found: str, allowed: str, meant: str = "") -> None:
        """Note a problem; the first one of a key counts. A key from outside the file is shown with its origin."""
        origin = self.origins.get(key)
        name = f"{key} ({origin})" if origin else key
        if name not in {problem.key for problem in self.problems}:
            line = None if self._is_from_outside(key) else line_of(self.text, key)
            self.problems.append(ConfigProblem(name, repr_encodable(found), allowed, meant, line))

    def shown(self, key: str, found: str) -> str:
        """Return `found` as a message may show it: not if the value at the key is a secret or holds one."""
        hides = any(secret == key or secret.startswith((f"{key}.", f"{key}[")) for secret in self.secrets)
        return "a secret value" if hides else found

    def _is_from_outside(self, key: str) -> bool:
        """Whether the file doesn't hold the value at a key: the key, or what it is in, was set from elsewhere."""
        return any(key == outside or key.startswith((f"{outside}.", f"{outside}[")) for outside in self.origins)


def read_draft(path: Path, overrides: Sequence[str], environ: Mapping[str, str]) -> Draft:
    """Read a config file and merge overrides and variables into it. Raises ConfigError if the file is no TOML."""
    tables, text = _read(path)
    draft = Draft(path.absolute(), tables, text)
    # Sorted, so that of two variables for one key the same one wins each time.
    for variable in sorted(environ):
        name = variable.removeprefix(PREFIX)
        if name != variable and name not in OF_COMMANDS and not _SET_BY_KUBERNETES.fullmatch(name):
            key = ".".join(name.lower().split("__"))
            _put(draft, key, environ[variable], f"from {variable}")
    for override in overrides:
        key, equals, text = override.partition("=")
        if equals:
            _put(draft, key.strip(), text, "from --set")
        else:
            draft.problem("--set", repr(override), "KEY=VALUE, such as batch.max_records=256")
    _substitute(draft, environ)
    return draft


def _read(path: Path) -> tuple[TomlTable, str]:
    text = ""
    try:
        # Some editors begin a file with a byte order mark, which TOML doesn't allow.
        text = path.read_bytes().decode("utf-8-sig")
        return tomllib.loads(text), text
    except tomllib.TOMLDecodeError as error:
        message = str(error)
        where = _WHERE.search(message)
        line, column = where.groups() if where and where[1] else _end_of(text)
        key = f"line {line}, column {column}"
        problem = ConfigProblem(key, f"a mistake: {_WHERE.sub('', message)}", "TOML")
    except UnicodeDecodeError as error:
        problem = ConfigProblem(f"byte {error.start}", "text that is not UTF-8", "TOML in UTF-8")
    except RecursionError:
        problem = ConfigProblem("file", "values nested too deeply", "a streambatch config in TOML")
    except OSError as error:
        problem = ConfigProblem("file", str(error.strerror).lower(), "a config in TOML that can be read")
    raise ConfigError([problem], where=str(path))


def _end_of(text: str) -> tuple[int, int]:
    """Return line and column of the end of a text, both from 1."""
    return text.count("\n") + 1, len(text) - text.rfind("\n")


def _put(draft: Draft, key: str, text: str, origin: str) -> None:
    """Set a dotted key, adding missing tables; `preprocess[0].scale` and `preprocess.0.scale` are the same key."""
    steps = [step.strip("[]") for step in _STEP.findall(key)]
    if not steps:
        draft.problem(origin.removeprefix("from "), repr(key), "a dotted key, such as batch.max_records")
        return
    holder: Any = draft.tables
    for at, step in enumerate(steps):
        is_last = at == len(steps) - 1
        if isinstance(holder, dict):
            if is_last or step not in holder:
                draft.origins[_dotted(steps[: at + 1])] = origin
                holder[step] = _value(text) if is_last else {}
            holder = holder[step]
        elif isinstance(holder, list) and step.isdecimal() and int(step) < len(holder):
            if is_last:
                draft.origins[_dotted(steps)] = origin
                holder[int(step)] = _value(text)
            holder = holder[int(step)]
        else:
            # The way leads through a value that is no table or list.
            draft.problem(f"{key} ({origin})", f"no {step!r} in {_dotted(steps[:at])}", "a key of a table or list")
            return


def _value(text: str) -> Any:
    """Return the TOML value that a text holds, else the text itself."""
    try:
        document = tomllib.loads(f"value = {text}")
    except (tomllib.TOMLDecodeError, RecursionError):
        return text
    value = document["value"]
    # `12:30`, `nan` or `inf` on a command line is more likely a text.
    is_meant = not isinstance(value, date | time) and not (isinstance(value, float) and not isfinite(value))
    # A text of several lines could bring keys of its own.
    return value if len(document) == 1 and is_meant else text


def _dotted(steps: Sequence[str]) -> str:
    return "".join(f"[{step}]" if step.isdecimal() else f".{step}" for step in steps).lstrip(".")


def _substitute(draft: Draft, environ: Mapping[str, str]) -> None:
    """Replace `${VAR}`, `${VAR:-default}` and `${VAR:?message}` in every string; `$${` stands for a plain `${`."""
    for holder, step, key, text in list(_strings(draft.tables, "")):
        name = key.rpartition(".")[2].partition("[")[0]
        if looks_secret(name):
            draft.secrets.add(key)
        if "${" in text:
            holder[step] = _REFERENCE.sub(partial(_resolve, draft, key, environ), text)


def _resolve(draft: Draft, key: str, environ: Mapping[str, str], match: re.Match[str]) -> str:
    escaped, variable, operator, text, malformed = match.groups()
    if escaped:
        return "${"
    if malformed:
        draft.problem(key, repr(malformed), "${VAR}, ${VAR:-default} or ${VAR:?message}; $${ for a plain ${")
        return ""
    if looks_secret(variable):
        draft.secrets.add(key)
    value = environ[variable] if variable in environ else _credential(draft, key, variable, environ)
    if value or (operator is None and value is not None):
        return value
    if operator == ":-":
        return str(text)
    why = f": {text}" if text else ""
    draft.problem(key, f"${{{variable}}}, which is not set{why}", f"a value in the environment variable {variable}")
    return ""


def _credential(draft: Draft, key: str, name: str, environ: Mapping[str, str]) -> str | None:
    """Return the content of a credential file, and mark the key as secret; None without such a file."""
    try:
        value = read_credential(name, environ)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        draft.problem(key, f"${{{name}}}, a credential that can't be read: {why}", "text in UTF-8 of at most 1 MiB")
        return ""
    if value is not None:
        draft.secrets.add(key)
    return value


def _strings(value: Any, key: str) -> Iterator[tuple[Any, Any, str, str]]:
    """Yield every string in nested tables and lists: its container, its key or index there, its dotted key, itself."""
    places: Iterator[tuple[Any, str]]
    if isinstance(value, dict):
        places = ((step, f"{key}.{step}".lstrip(".")) for step in value)
    elif isinstance(value, list):
        places = ((step, f"{key}[{step}]") for step in range(len(value)))
    else:
        return
    for step, inner in places:
        if isinstance(value[step], str):
            yield value, step, inner, value[step]
        else:
            yield from _strings(value[step], inner)
