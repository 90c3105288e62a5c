"""The names of a pipeline's sources: each has one of its own, which is its label and the key of its state."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import count

from streambatch.core.parts import Source


def distinctly_named(sources: Iterable[Source]) -> list[Source]:
    """Return the sources, each with a name of its own: a second `file` becomes `file_2`."""
    # A name that somebody gave stays with its source, whatever comes before it: state is found again by it.
    sources = list(sources)
    taken = {source.name for source in sources}
    seen: set[str] = set()
    named = []
    for source in sources:
        if source.name in seen:
            source = source.named(_free(source.name, taken))
        taken.add(source.name)
        seen.add(source.name)
        named.append(source)
    return named


def _free(name: str, taken: set[str]) -> str:
    return next(numbered for number in count(2) if (numbered := f"{name}_{number}") not in taken)
