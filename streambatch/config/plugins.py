"""Finds parts by the name a config gives as `type`: the entry points of whatever is installed, built-in or not.

A part is imported when it is asked for and not before, so that a broken or slow plugin troubles only who uses it.
"""

from difflib import get_close_matches
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from streambatch.config.config import Group
from streambatch.core.errors import OptionError


def find_part(group: Group, name: str | None) -> type[Any]:
    """Return the options class that is registered as `name`.

    Raises OptionError, for the option `type`, when there is none, when two packages claim the name, or when the
    package that has it can't be imported.
    """
    found = {entry.value: entry for entry in _registered(group) if entry.name == name}
    if not found:
        raise OptionError("type", "nothing" if name is None else repr(name), _installed(group, name))
    if len(found) > 1:
        packages = " and ".join(sorted(_package(entry) for entry in found.values()))
        raise OptionError("type", f"{name!r}, which {packages} both provide", "one of them installed")
    (entry,) = found.values()
    return _imported(entry)


def installed(group: Group) -> list[str]:
    """Return the names that are registered, sorted."""
    return sorted({entry.name for entry in _registered(group)})


def _registered(group: Group) -> list[EntryPoint]:
    return list(entry_points(group=f"streambatch.{group}"))


def _installed(group: Group, name: str | None) -> str:
    names = installed(group)
    if not names:
        return f"a plugin of streambatch.{group}, and none is installed; install streambatch itself with pip"
    close = get_close_matches(name or "", names, n=1)
    return ", ".join(names) + (f"; did you mean {close[0]}?" if close else "")


def _imported(entry: EntryPoint) -> type[Any]:
    try:
        part = entry.load()
    except Exception as error:
        found = f"{entry.name!r}, which can't be imported ({type(error).__name__}: {error})"
        raise OptionError("type", found, f"a part whose package, here {_package(entry)}, works") from error
    if not isinstance(part, type):
        raise OptionError(
            "type", f"{entry.name!r}, which is no class", f"a class at {entry.value} in {_package(entry)}"
        )
    return part


def _package(entry: EntryPoint) -> str:
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist is not None else entry.value
