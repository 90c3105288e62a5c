"""A disk that loses power at every step: what a crash may leave of the files that some code wrote.

    with SimulatedDisk(folder) as disk:
        ...                                 # any code that writes below `folder`, in this process
        disk.note = 5                       # what the test knows to be durable from here on
        ...
    for crash in disk.crashes():            # at every step, each with the note of its moment
        crash.lay_out(other)                # empties `other` and puts there what the crash left
        ...                                 # start again there, and compare with `crash.note`

The code runs on the real file system, unchanged. Around each call of `os` that changes something (see `CALLS`) the
folder is looked at, and what is new is noted as an operation: a write, a cut, a name that came, went or moved. Writes
through file objects are found at the next such call, or at `look()`; several in a row then count as one. `os.fsync` and
`os.fdatasync` of a file make its bytes durable, as they are when the call begins; of a folder, its names. Nothing else
makes anything durable: a new file that was synced may lack its name, until its folder is synced too, and so may a new
folder.

A crash leaves of each file and of each folder's names, independently: what is durable, and of the operations since
then any first few, any one alone, or all but one, and of a write that is the last of them a prefix, or zeros of its
length. A rename within a folder happens whole or not at all. Files that were there before count as durable. Not seen:
links, mmap, modes.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import random
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any
from unittest import mock

CALLS = (
    "fdatasync", "fsync", "ftruncate", "mkdir", "pwrite", "remove", "rename", "replace", "rmdir", "truncate", "unlink",
    "write", "writev",
)  # fmt: skip
"""Functions of `os` that are steps."""

Names = Mapping[str, "_Thing"]
Tree = Mapping[str, bytes | None]
"""What is below a folder, by relative path: a file's bytes, None for a folder."""


@dataclass(frozen=True)
class Crash:
    """What is there after a crash. step: how many steps were done. note: what the test had noted by then."""

    step: int
    note: Any
    tree: Tree

    def lay_out(self, folder: Path) -> None:
        """Make `folder` hold this and nothing else."""
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for name, data in self.tree.items():
            if data is None:
                (folder / name).mkdir()
            else:
                (folder / name).write_bytes(data)


class SimulatedDisk:
    """Watches a folder; see above. note: kept with each step from when it is set."""

    def __init__(self, folder: Path) -> None:
        self.note: Any = None
        self._folder = folder
        self._by_inode: dict[int, _Thing] = {}
        self._moments: list[_Moment] = []
        self._calling = threading.RLock()
        self._patches = [mock.patch.object(os, name, partial(self._call, name, getattr(os, name))) for name in CALLS]

    def __enter__(self) -> SimulatedDisk:
        self._root = self._scan(self._folder)
        for thing in self._by_inode.values():
            thing.settle(thing.now)
        self._remember()
        for patch in self._patches:
            patch.start()
        return self

    def __exit__(self, *exc: object) -> None:
        for patch in self._patches:
            patch.stop()
        self.look()

    def look(self) -> None:
        """Take in what was written meanwhile, as a step."""
        with self._calling:
            self._scan(self._folder)
            there = {id(thing) for thing in self._root.below(is_now=True)}
            self._by_inode = {inode: thing for inode, thing in self._by_inode.items() if id(thing) in there}
            self._remember()

    def crashes(self, *, per_step: int = 40, seed: int = 0) -> Iterator[Crash]:
        """Yield what a crash may leave at each step, no two alike in tree and note.

        per_step: where more than so many are possible, about so many of them, chosen by `seed`; always with what is
        durable alone and with all that was written.
        """
        chance = random.Random(seed)
        seen: list[tuple[Any, set[frozenset[tuple[str, bytes | None]]]]] = []
        for step, moment in enumerate(self._moments):
            if not seen or seen[-1][0] != moment.note:
                seen.append((moment.note, set()))
            for tree in moment.trees(per_step, chance):
                if (key := frozenset(tree.items())) not in seen[-1][1]:
                    seen[-1][1].add(key)
                    yield Crash(step, moment.note, tree)

    def _call(self, name: str, real: Callable[..., Any], *args: Any, **options: Any) -> Any:
        self.look()
        with self._calling:
            thing = self._by_inode.get(os.fstat(args[0]).st_ino) if name in ("fsync", "fdatasync") else None
            durable, count = (thing.now, len(thing.pending)) if thing else (None, 0)
        result = real(*args, **options)
        if thing is not None:
            with self._calling:
                thing.settle(durable, count)
        self.look()
        return result

    def _remember(self) -> None:
        things = self._root.below()
        self._moments.append(_Moment(self.note, self._root, {id(thing): thing.frozen() for thing in things}))

    def _scan(self, path: Path) -> _Thing:
        """Return the folder as it is known, with what changed noted."""
        found: dict[str, _Thing] = {}
        for entry in sorted(os.scandir(path), key=lambda entry: entry.name):
            if entry.is_dir(follow_symlinks=False):
                found[entry.name] = self._scan(Path(entry.path))
            elif entry.is_file(follow_symlinks=False):
                with contextlib.suppress(FileNotFoundError):  # another thread was quicker
                    content = Path(entry.path).read_bytes()
                    found[entry.name] = self._known(entry.inode(), b"")
                    found[entry.name].rewrite(content)
        folder = self._known(path.stat().st_ino, MappingProxyType({}))
        folder.rename(found)
        return folder

    def _known(self, inode: int, empty: Any) -> _Thing:
        thing = self._by_inode.get(inode)
        if thing is None or type(thing.now) is not type(empty):
            thing = self._by_inode[inode] = _Thing(now=empty, durable=empty)
        return thing


@dataclass(frozen=True)
class _Write:
    at: int
    data: bytes

    def on(self, content: bytes) -> bytes:
        return content[: self.at].ljust(self.at, b"\0") + self.data + content[self.at + len(self.data) :]

    def torn(self) -> Sequence[_Write]:
        sizes = {1, len(self.data) // 2, len(self.data) - 1} - {0, len(self.data)}
        return [*(_Write(self.at, self.data[:size]) for size in sorted(sizes)), _Write(self.at, bytes(len(self.data)))]


@dataclass(frozen=True)
class _Cut:
    length: int

    def on(self, content: bytes) -> bytes:
        return content[: self.length]

    def torn(self) -> Sequence[_Cut]:
        return ()


@dataclass(frozen=True, eq=False)
class _Naming:
    """names that came or, where None, went, all at once."""

    changed: Mapping[str, _Thing | None]

    def on(self, names: Names) -> Names:
        return MappingProxyType({name: thing for name, thing in {**names, **self.changed}.items() if thing is not None})

    def torn(self) -> Sequence[_Naming]:
        return ()


@dataclass(eq=False)
class _Thing:
    """A file (bytes) or a folder (names): as it is, what is durable, and the operations that lie between."""

    now: Any
    durable: Any
    pending: list[Any] = field(default_factory=list)

    def settle(self, durable: Any, count: int | None = None) -> None:
        """Learn what a sync made durable, with the first `count` operations, or all."""
        self.durable = durable
        self.pending = self.pending[count:] if count is not None else []

    def rewrite(self, content: bytes) -> None:
        if content == self.now:
            return
        kept = _common(content, self.now)
        if kept < len(self.now):
            self._do(_Cut(kept))
        if kept < len(content):
            self._do(_Write(kept, content[kept:]))

    def rename(self, names: Names) -> None:
        changed = {name: names.get(name) for name in {*names, *self.now} if names.get(name) is not self.now.get(name)}
        came = {id(thing) for thing in changed.values() if thing is not None}
        if any(id(self.now[name]) in came for name in changed if name in self.now):
            self._do(_Naming(changed))
        else:
            for name in sorted(changed):
                self._do(_Naming({name: changed[name]}))

    def below(self, *, is_now: bool = False) -> Iterator[_Thing]:
        """Yield this and all that it names, or, unless `is_now`, may name after a crash."""
        seen: dict[int, _Thing] = {}
        left = [self]
        while left:
            thing = left.pop()
            if id(thing) not in seen:
                seen[id(thing)] = thing
                if not isinstance(thing.now, bytes):
                    left += thing.now.values()
                if not isinstance(thing.now, bytes) and not is_now:
                    left += thing.durable.values()
                    left += [one for op in thing.pending for one in op.changed.values() if one is not None]
        yield from seen.values()

    def frozen(self) -> tuple[Any, tuple[Any, ...]]:
        return self.durable, tuple(self.pending)

    def _do(self, operation: Any) -> None:
        self.pending.append(operation)
        self.now = operation.on(self.now)


@dataclass(frozen=True)
class _Moment:
    note: Any
    root: _Thing
    things: Mapping[int, tuple[Any, tuple[Any, ...]]]

    def trees(self, limit: int, chance: random.Random) -> Iterator[Tree]:
        states = {key: _legal(durable, pending) for key, (durable, pending) in self.things.items()}
        open_keys = [key for key, found in states.items() if len(found) > 1]
        if math.prod(len(states[key]) for key in open_keys) <= limit:
            picks = [dict(zip(open_keys, at, strict=True)) for at in itertools.product(*(states[k] for k in open_keys))]
        else:
            picks = [{key: states[key][end] for key in open_keys} for end in (0, -1)]
            picks += [{key: chance.choice(states[key]) for key in open_keys} for _ in range(limit - 2)]
        certain = {key: found[0] for key, found in states.items()}
        for pick in picks:
            yield dict(_tree(self.root, certain | pick, ""))


def _common(one: bytes, other: bytes) -> int:
    """Return how many first bytes are the same."""
    shorter = min(len(one), len(other))
    if one[:shorter] == other[:shorter]:
        return shorter
    return next(at for at in range(shorter) if one[at] != other[at])


def _legal(durable: Any, pending: Sequence[Any]) -> list[Any]:
    """Return what a crash may leave of a thing: first what is durable, last all that was done, none twice."""
    count = len(pending)
    chosen = [[*pending[:at], torn] for at in range(count) for torn in pending[at].torn()]
    chosen += [list(pending[:at]) for at in range(1, count)]
    chosen += [[one] for one in pending] + [[*pending[:at], *pending[at + 1 :]] for at in range(count)]
    found = [durable]
    for operations in [*chosen, list(pending)]:
        state = durable
        for operation in operations:
            state = operation.on(state)
        found = [known for known in found if known != state] + [state] if state != durable else found
    return found


def _tree(folder: _Thing, states: Mapping[int, Any], prefix: str) -> Iterator[tuple[str, bytes | None]]:
    for name, thing in states[id(folder)].items():
        state = states[id(thing)]
        yield prefix + name, state if isinstance(state, bytes) else None
        if not isinstance(state, bytes):
            yield from _tree(thing, states, f"{prefix}{name}/")
