"""The names of partitions: each is the path of its file as it was found first."""

import os
from collections.abc import Iterable


class PartitionNames:
    """Names given to partitions, none of them twice."""

    def __init__(self, taken: Iterable[str] = ()) -> None:
        self._taken = dict.fromkeys(taken, 1)

    def take(self, path: str) -> str:
        """Return a name never given before: the path, then `<path>#2` and so on."""
        base = name = partition_name(path)
        while name in self._taken:
            self._taken[base] = self._taken.get(base, 1) + 1
            name = f"{base}#{self._taken[base]}"
        self._taken[name] = 1
        return name


def partition_name(path: str) -> str:
    """Return the path as text that can be written anywhere: bytes that aren't UTF-8 become escapes."""
    return os.fsencode(path).decode(errors="backslashreplace")
