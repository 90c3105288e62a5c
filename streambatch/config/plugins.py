"""Find parts by the `type` in a config, among the entry points of all installed packages, this one included.

A part is imported only when a config names it, so that a broken or slow plugin affects only the configs that use it.
"""

from importlib.metadata import EntryPoint, entry_points
from typing import Any

from streambatch.config.sections import Group, closest
from streambatch.core.errors import OptionError


def find_part(group: Group, name: str | None) -> type[Any]:
    """Return the options class that is registered as `name`.

    Raises OptionError, for the option `type`, when there is none, when two packages claim the name, or when the
    package that has it can't be imported.
    """
    # Keyed by target: a package that is found twice on the path, as in an editable install, is one.
    found = {entry.value: entry for entry in _registered(group) if entry.name == name}
    if not found:
        names = installed(group)
        allowed = ", ".join(names) or f"a plugin of streambatch.{group}; install streambatch itself with pip"
        raise OptionError("type", "nothing" if name is None else repr(name), allowed, closest(name or "", names))
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


def _imported(entry: EntryPoint) -> type[Any]:
    try:
        part = entry.load()
    # Of any kind: it is the code of another package that fails here.
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
