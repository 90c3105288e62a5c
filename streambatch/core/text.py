"""Texts as anybody can be shown them: short enough, and of characters that any output takes."""

import re
from collections.abc import Mapping
from datetime import date, time

_BYTES = re.compile("[\udc80-\udcff]")
"""What Python puts in the place of bytes that are not UTF-8."""
_ESCAPED = re.compile(r"(?<!\\)((?:\\\\)*)\\udc([89a-f][0-9a-f])")
"""The same as `repr` writes it, after any number of backslashes that stand for themselves."""


def encodable(text: str) -> str:
    r"""Return a text with what can't be UTF-8 written as `\xff`: a file may be named by any bytes."""
    if text.isascii():
        return text
    shown = _BYTES.sub(lambda byte: f"\\x{ord(byte[0]) & 0xFF:02x}", text)
    # What is left that can't be UTF-8 are lone halves of surrogate pairs, which JSON's escapes can name.
    return shown.encode(errors="backslashreplace").decode()


def repr_encodable(text: str) -> str:
    r"""Return a text that holds what `repr` made, with bytes that are not UTF-8 as `encodable` writes them: `\xff`."""
    return encodable(_ESCAPED.sub(r"\1\\x\2", text))


def toml_text(value: object) -> str:
    """Return a value as a config would hold it: `true`, `'text'`, `[1, 2]`, `{ low = 0 }`."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        inner = ", ".join(f"{key} = {toml_text(one)}" for key, one in value.items())
        return f"{{ {inner} }}" if inner else "{}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(toml_text, value))}]"
    if isinstance(value, date | time):
        return value.isoformat()
    return "nothing" if value is None else repr(value)


def shortened(text: str, characters: int) -> str:
    """Return at most so many characters of a text; dots at its end stand for the rest."""
    return text if len(text) <= characters else f"{text[: characters - 3]}..."


def rows_text(shape: tuple[int, ...]) -> str:
    """Return the shape of any number of records, as messages write it: `(n, 3)`."""
    return f"({', '.join(['n', *map(str, shape)])})" if shape else "(n,)"
