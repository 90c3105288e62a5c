"""Find the line of a TOML file that sets a key, for messages. `tomllib` reports no positions of keys."""

import re
import tomllib
from collections import Counter
from collections.abc import Iterator, Sequence

Steps = tuple[str, ...]
_STEP = re.compile(r"[^.\[\]]+")
_KEY = re.compile(r"""\s*((?:[A-Za-z0-9_-]+|"[^"\\]*"|'[^']*'|[ \t.])+)=""")


def line_of(text: str, key: str) -> int | None:
    """Return the 1-based line that sets a dotted key, or else the table that it is in; None if neither is there."""
    wanted = tuple(_STEP.findall(key))
    best, found = 0, None
    lines = text.split("\n")
    for number, steps in _statements(lines):
        # The test of the lines before comes last, since it parses them all.
        if best < len(steps) and steps == wanted[: len(steps)] and _begins_statement(lines[: number - 1]):
            best, found = len(steps), number
    return found


def _statements(lines: Sequence[str]) -> Iterator[tuple[int, Steps]]:
    """Yield the lines that look like a table's header or a key with a value, with the key from the top level."""
    table: Steps = ()
    tables_of: Counter[Steps] = Counter()
    for number, line in enumerate(lines, 1):
        if line.lstrip().startswith("["):
            steps = _steps_in(line)
            if steps and line.lstrip().startswith("[["):
                # A table in a list of tables is named by its index: `preprocess[0]`.
                tables_of[steps] += 1
                steps = (*steps, str(tables_of[steps] - 1))
            if steps:
                table = steps
                yield number, table
        # The key with any value, since its own may go on over several lines.
        elif (match := _KEY.match(line)) and (steps := _steps_in(f"{match[1]} = 0")):
            yield number, (*table, *steps)


def _steps_in(statement: str) -> Steps:
    """Return the key of a statement that fits on a line; empty if it is no TOML, such as a line of a nested list."""
    try:
        value: object = tomllib.loads(statement)
    except tomllib.TOMLDecodeError:
        return ()
    steps = []
    while isinstance(value, dict | list) and value:
        if isinstance(value, list):
            value = value[0]
        else:
            ((step, value),) = value.items()
            steps.append(step)
    return tuple(steps)


def _begins_statement(lines_before: Sequence[str]) -> bool:
    """Whether what comes before is whole: else the line is inside a list or a text of several lines."""
    try:
        tomllib.loads("\n".join(lines_before))
    except tomllib.TOMLDecodeError:
        return False
    return True
