"""Followed files, real ones, while the reader is stopped and started: nothing lost but what was destroyed unread,
nothing doubled, whatever of it was acked."""

import os
import shutil
import tempfile
from itertools import count
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from streambatch.connectors.files import follow
from streambatch.connectors.files.searching import look_at
from streambatch.connectors.files.source import FileSource
from streambatch.core.checkpoints import PartitionNotes, SavedPartition
from streambatch.core.parts import Site
from tests.connectors.files.filing import FileIntake

pytestmark = pytest.mark.slow
NAMES = st.sampled_from(["log", "log.1", "log.2", "logs"])
QUIET_LOOKS = 5
"""Looks without a new record after which nothing more is to come."""


class Content:
    """What was written to a file since it was created or cut back. Its lines are like no other's."""

    def __init__(self, number: int) -> None:
        self.number, self.raw, self.lines = number, b"", count()
        self.is_kept = True

    def more(self, lines: int, torn: bool) -> bytes:
        """Return what to append: the rest of a torn line, then lines, the last of them torn or not."""
        at = len(self.raw)
        self.raw += b"" if self.raw.endswith(b"\n") or not self.raw else b"-rest\n"
        for _ in range(lines):
            self.raw += b"%d:%d;" % (self.number, next(self.lines)) + b"x" * (97 * self.number % 700) + b"\n"
        if torn:
            self.raw += b"%d:%d;torn" % (self.number, next(self.lines))
        return self.raw[at:]

    def has(self, record: bytes, end: int) -> bool:
        """Tell whether a record ends there."""
        return self.raw[:end].rstrip(b"\n").endswith(record) and end <= len(self.raw)


class Restarting(RuleBasedStateMachine):
    """Writers append, rotate, cut back, delete and create, while a reader runs and while none does."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.numbers = count(1)
        self.names: dict[str, Content] = {}
        self.contents: list[Content] = []
        self.of_partition: dict[str, Content] = {}
        self.acked: dict[Content, int] = {}
        self.position: dict[str, int] = {}
        self.read_to: dict[str, int] = {}
        self.notes: dict[str, PartitionNotes] = {}

    # What writers do.

    @rule(name=NAMES, lines=st.integers(0, 30), torn=st.booleans())
    def append(self, name: str, lines: int, torn: bool) -> None:
        if name not in self.names:
            self._create(name)
        with (self.folder / name).open("ab") as file:
            file.write(self.names[name].more(lines, torn))

    @rule(old=NAMES, new=NAMES)
    def rename(self, old: str, new: str) -> None:
        if old in self.names and old != new:
            self._lose(new)
            (self.folder / old).rename(self.folder / new)
            self.names[new] = self.names.pop(old)

    @rule()
    def rotate(self) -> None:
        self.rename("log.1", "log.2")
        self.rename("log", "log.1")
        self.append("log", 2, torn=False)

    @rule(name=NAMES)
    def delete(self, name: str) -> None:
        if name in self.names:
            self._lose(name)
            (self.folder / name).unlink()

    @rule(name=NAMES, lines=st.integers(0, 30))
    def delete_and_create(self, name: str, lines: int) -> None:
        """The inode is used again at once, on many file systems."""
        self.delete(name)
        self.append(name, lines, torn=False)

    @rule(name=NAMES, lines=st.integers(0, 30))
    def cut_back(self, name: str, lines: int) -> None:
        if name in self.names:
            self._lose(name)
            os.truncate(self.folder / name, 0)
            self.names[name] = self._new()
            self.append(name, lines, torn=False)

    @rule(name=NAMES)
    def rename_away(self, name: str) -> None:
        """Rename it to what doesn't match: it is read to its end if a checkpoint knows its first bytes."""
        if name in self.names:
            content = self.names.pop(name)
            seen = [name for name, notes in self.notes.items() if notes.get("head")]
            content.is_kept &= content in [self.of_partition.get(name) for name in seen]
            (self.folder / name).rename(self.folder / f"old-{content.number}")

    # What the reader does.

    @rule(records=st.integers(0, 60), share=st.floats(0, 1), rotate_wait=st.sampled_from([0.0, 60.0]))
    def run_and_stop(self, records: int, share: float, rotate_wait: float) -> None:
        anyio.run(self._run, records, share, rotate_wait, False)

    @rule(records=st.integers(0, 60), share=st.floats(0, 1), rotate_wait=st.sampled_from([0.0, 60.0]))
    def run_rotate_and_die(self, records: int, share: float, rotate_wait: float) -> None:
        anyio.run(self._run, records, share, rotate_wait, True)

    def teardown(self) -> None:
        try:
            anyio.run(self._run, 1 << 30, 1.0, 60.0, False)
            for content in self.contents:
                if content.is_kept:
                    whole = content.raw[: content.raw.rfind(b"\n") + 1]
                    assert not whole[self.acked.get(content, 0) :].strip(), content.number
        finally:
            shutil.rmtree(self.folder)

    async def _run(self, records: int, share: float, rotate_wait: float, dies: bool) -> None:
        source = FileSource(f"{self.folder}/log*", follow=True, rotate_wait=rotate_wait).build(Site())
        source.resume(self._saved())
        intake = FileIntake()
        with anyio.fail_after(20):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(source.run, intake)
                await self._quiet(intake, records)
                notes, handed_over = source.notes(), len(intake.chunks)
                if dies:
                    self.rotate()
                    await self._quiet(intake, 1 << 30)
                tasks.cancel_scope.cancel()
        if not dies:
            notes, handed_over = {**notes, **source.notes()}, len(intake.chunks)
        assert intake.files.outages == []
        self._check(intake)
        self._checkpoint(intake, handed_over, notes, share)

    async def _quiet(self, intake: FileIntake, records: int) -> None:
        quiet, seen, looks = 0, intake.count, LOOKS[0]
        while quiet < QUIET_LOOKS and intake.count < records:
            await anyio.sleep(0.001)
            quiet = LOOKS[0] - looks
            if intake.count != seen:
                seen, looks = intake.count, LOOKS[0]

    def _saved(self) -> dict[str, SavedPartition]:
        return {
            name: SavedPartition(
                position=self.position.get(name, 0),
                read_to=self.read_to.get(name, 0),
                notes=msgspec.json.decode(msgspec.json.encode(notes)),
            )
            for name, notes in self.notes.items()
        }

    def _check(self, intake: FileIntake) -> None:
        """Every content comes from where it was acked on, without a gap, in one partition."""
        reached: dict[Content, int] = {}
        for chunk in intake.chunks:
            name = chunk.partition.name
            for at in range(chunk.count):
                # A last line that was taken as it is has got a newline.
                raw, end = bytes(chunk.raw(at)).rstrip(b"\n"), chunk.position_of(at)
                content = self.of_partition.get(name)
                if content is None or not content.has(raw, end):
                    assert name not in self.notes or not self.position.get(name), f"{name}: two contents"
                    content = self._content_of(raw, end)
                    self.of_partition[name] = content
                before = reached.get(content, self.acked.get(content, 0))
                start = content.raw[:end].rstrip(b"\n").rfind(raw)
                assert start >= before, f"{name}: {raw!r} came twice"
                assert not content.raw[before:start].strip(), f"{name}: {content.raw[before:start]!r} is left out"
                reached[content] = end

    def _checkpoint(self, intake: FileIntake, handed_over: int, notes: Any, share: float) -> None:
        ends: dict[str, list[int]] = {}
        for chunk in intake.chunks[:handed_over]:
            ends.setdefault(chunk.partition.name, []).extend(chunk.position_of(at) for at in range(chunk.count))
        self.notes |= {name: each for name, each in notes.items() if each is not None}
        for name, each in ends.items():
            self.read_to[name] = max(self.read_to.get(name, 0), each[-1])
            acked = each[: round(len(each) * share)]
            if acked:
                self.position[name] = acked[-1]
                self.acked[self.of_partition[name]] = acked[-1]
        for name, each in notes.items():
            if each is None and self.position.get(name, 0) >= self.read_to.get(name, 0):
                for table in (self.notes, self.position, self.read_to):
                    table.pop(name, None)

    def _content_of(self, raw: bytes, end: int) -> Content:
        found = [each for each in self.contents if each.has(raw, end)]
        assert len(found) == 1, raw
        return found[0]

    def _create(self, name: str) -> None:
        (self.folder / name).touch()
        self.names[name] = self._new()

    def _new(self) -> Content:
        self.contents.append(Content(next(self.numbers)))
        return self.contents[-1]

    def _lose(self, name: str) -> None:
        if name in self.names:
            self.names.pop(name).is_kept = False


LOOKS = [0]


@pytest.fixture(autouse=True)
def _look_often(monkeypatch: pytest.MonkeyPatch) -> None:
    def counting(*args: Any) -> Any:
        LOOKS[0] += 1
        return look_at(*args)

    monkeypatch.setattr(follow, "look_at", counting)
    monkeypatch.setattr(follow, "LOOK_SECONDS", 0.001)


TestRestarting = Restarting.TestCase
TestRestarting.settings = settings(max_examples=30, stateful_step_count=15, deadline=None)
