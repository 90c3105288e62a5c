"""How commands print what they found: as rows of a word and what there is to say of it, or as JSON."""

import json
from collections.abc import Iterable
from typing import Any

import msgspec

from streambatch.core.text import encodable


def print_rows(rows: Iterable[tuple[str, object]]) -> None:
    """Print a line for each row."""
    for word, text in rows:
        print(encodable(f"{word:<14}{text}"))


def print_json(value: Any) -> None:
    """Print plain data, or what msgspec makes such of, as JSON of many lines."""
    print(json.dumps(msgspec.to_builtins(value), indent=2))
