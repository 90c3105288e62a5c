"""The names of a pipeline's sources: each has one of its own, which is its label and the key of its state."""

from __future__ import annotations

from collections.abc import Iterable

from streambatch.core.parts import Source


def distinctly_named(sources: Iterable[Source]) -> list[Source]:
    """Return the sources, each with a name of its own: a second `file` becomes `file_2`."""
    seen: dict[str, int] = {}
    named = []
    for source in sources:
        seen[source.name] = number = seen.get(source.name, 0) + 1
        named.append(source if number == 1 else source.named(f"{source.name}_{number}"))
    return named
