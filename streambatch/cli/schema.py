"""`streambatch schema`: the JSON Schema of the config, for editors and other programs."""

import sys
from typing import Any, get_args

import msgspec

from streambatch.config.plugins import find_part, installed
from streambatch.config.schema import config_schema
from streambatch.config.sections import Group
from streambatch.core.errors import OptionError


def print_schema() -> int:
    """Print the JSON Schema of a config, installed plugins included. Returns the exit code."""
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(installed_schema()), indent=2).decode() + "\n")
    return 0


def installed_schema() -> dict[str, Any]:
    """Return the schema. A part that can't be imported is left out, with a note on stderr."""
    return config_schema({group: _parts(group) for group in get_args(Group)})


def _parts(group: Group) -> dict[str, type[Any]]:
    found = {}
    for name in installed(group):
        try:
            found[name] = find_part(group, name)
        except OptionError as error:
            # On stderr: stdout is the schema alone, for programs.
            print(f"note: left out of {group}: {error.found}", file=sys.stderr)
    return found
