"""Print the results of commands, as rows of a word and a text, or as JSON."""

import json
from collections.abc import Iterable
from typing import Any

import msgspec

from streambatch.core.text import encodable


def print_rows(rows: Iterable[tuple[str, object]]) -> None:
    """Print a line for each row."""
    for word, text in rows:
        # Names of files may hold bytes that are no text.
        print(encodable(f"{word:<14}{text}"))


def print_json(value: Any) -> None:
    """Print a value that msgspec can encode as indented JSON."""
    print(json.dumps(msgspec.to_builtins(value), indent=2))
