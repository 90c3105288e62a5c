"""What must be true of all that a daemon left behind, told from its files alone: ids in, ids out."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from streambatch.codecs.formats import OutputFormat
from tests.connectors.files.written import read
from tests.faults.records import is_poison, score_of

_SEGMENT = re.compile(r"-\d{8}\.")


@dataclass(kw_only=True)
class Figures:
    """What was found wrong; `examples` tells the first few. `records` is how many went in."""

    records: int = 0
    lost: int = 0
    doubled: int = 0
    out_of_order: int = 0
    wrong: int = 0
    unknown: int = 0
    examples: list[str] = field(default_factory=list)

    @property
    def is_exact(self) -> bool:
        """Whether every record came out once, in its order, as what it should."""
        return not (self.lost or self.doubled or self.out_of_order or self.wrong or self.unknown)

    def note(self, example: str) -> None:
        if len(self.examples) < 10:
            self.examples.append(example)

    def __str__(self) -> str:
        names = ("records", "lost", "doubled", "out_of_order", "wrong", "unknown")
        text = ", ".join(f"{getattr(self, name)} {name.replace('_', ' ')}" for name in names)
        return f"{text}{': ' if self.examples else ''}{'; '.join(self.examples)}"


@dataclass
class Outputs:
    """Where a pipeline of these tests leaves what it makes: `scores` may be in segments, and so may `dead`."""

    folder: Path
    scores: str = "out/scores.jsonl"
    format: OutputFormat = "jsonl"
    dead: str = "out/dead.jsonl"

    def judge(self, sent: Mapping[str, int], *, at_least_once: bool = False) -> Figures:
        """Compare what came out with how many records each stream has.

        at_least_once: a record may come out again, for a sink that can't be taken back.
        """
        figures = Figures(records=sum(sent.values()))
        seen: Counter[tuple[str, int]] = Counter()
        for kind, found in (("score", self._scores()), ("dead letter", self._dead())):
            last: dict[str, int] = {}
            for stream, number, score in found:
                seen[stream, number] += 1
                expected = None if is_poison(number) else score_of(stream, number)
                if not 0 <= number < sent.get(stream, 0):
                    figures.unknown += 1
                    figures.note(f"unknown {kind} {stream}:{number}")
                elif score != expected:
                    figures.wrong += 1
                    figures.note(f"{kind} {stream}:{number} is {score}, expected {expected}")
                if number < last.get(stream, -1) and not at_least_once:
                    figures.out_of_order += 1
                    figures.note(f"{kind} {stream}:{number} after {stream}:{last[stream]}")
                last[stream] = number
        _count(figures, seen, sent, at_least_once=at_least_once)
        return figures

    def files(self, name: str) -> list[Path]:
        """Return the segments of an output in order, with what is still open last."""
        path = self.folder / name
        found = sorted(path.parent.glob("*")) if path.parent.exists() else []
        stem = path.name.partition(".")[0]
        closed = [each for each in found if _SEGMENT.search(each.name) and each.name.startswith(f"{stem}-")]
        return [*closed, *(each for each in (path.with_name(f"{path.name}.open"), path) if each.exists())]

    def closed(self) -> dict[Path, tuple[int, int, int]]:
        """Return what must never change again of the closed segments that are there."""
        paths = [path for name in (self.scores, self.dead) for path in self.files(name) if _SEGMENT.search(path.name)]
        stats = ((path, path.stat()) for path in paths)
        return {path: (stat.st_ino, stat.st_size, stat.st_mtime_ns) for path, stat in stats}

    def _scores(self) -> Iterator[tuple[str, int, float | None]]:
        for path in self.files(self.scores):
            for row in read(path, self.format):
                yield (*_parted(str(row["id"])), float(row["score"]))

    def _dead(self) -> Iterator[tuple[str, int, float | None]]:
        for path in self.files(self.dead):
            for letter in map(msgspec.json.decode, path.read_bytes().splitlines()):
                yield (*_parted(msgspec.json.decode(letter["record"])["id"]), None)


def _parted(id: str) -> tuple[str, int]:
    stream, _, number = id.rpartition(":")
    return stream, int(number)


def _count(figures: Figures, seen: Counter[tuple[str, int]], sent: Mapping[str, int], *, at_least_once: bool) -> None:
    for stream, count in sent.items():
        for number in range(count):
            times = seen.get((stream, number), 0)
            if times == 0:
                figures.lost += 1
                figures.note(f"lost {stream}:{number}")
            elif times > 1 and not at_least_once:
                figures.doubled += times - 1
                figures.note(f"{stream}:{number} came out {times} times")
