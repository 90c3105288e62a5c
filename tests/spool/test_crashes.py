"""A spool on a disk that loses power at any step, and one that is opened, filled, acked, damaged in any order."""

import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from streambatch.spool.folder import SpoolFolder
from streambatch.spool.keys import SpoolKeys, hashed
from tests.simulated_disk import SimulatedDisk
from tests.spool.spooling import DAY, NOW, opened, records_in, request

pytestmark = pytest.mark.slow


def test_no_crash_loses_what_was_durable_or_brings_what_was_not_written(tmp_path: Path) -> None:
    """Appends, removals and a restart; `note` is what was durable: (acked, records after it, keys, all written)."""
    path = tmp_path / "disk" / "spool"
    path.parent.mkdir()
    written: list[bytes] = []
    ends: list[int] = [0]
    keys: list[str] = []
    acked = 0
    with SimulatedDisk(path.parent) as disk:
        folder = opened(path, segment_bytes=200)
        for at in range(24):
            if at in (8, 16):
                folder.close()
                folder = opened(path, acked=ends[acked], known_to=ends[acked], segment_bytes=200)
            lines = [b"record-%d-%d" % (at, each) for each in range(3)]
            written += lines
            for line in lines:
                ends.append(ends[-1] + len(line) + 1)
            folder.append([request(lines[:1]), request(lines[1:2], lines[2:], key=f"key-{at}")])
            keys.append(f"key-{at}")
            disk.note = (acked, len(written), len(keys))
            if at % 5 == 4:
                acked = len(written) - 6
                disk.note = (acked, len(written), len(keys))
                folder.remove(ends[acked], NOW)
        folder.close()
    seen = 0
    for crash in disk.crashes(per_step=12):
        first, durable, known = crash.note or (0, 0, 0)
        crash.lay_out(tmp_path / "after")
        for _ in range(2):  # recovering twice finds the same
            index = SpoolKeys(tmp_path / "after" / "spool", DAY)
            again = SpoolFolder(tmp_path / "after" / "spool", 200, index)
            again.open(ends[first], ends[first])
            found = records_in(again, after=ends[first])
            again.close()
            assert found == written[first : first + len(found)], crash
            assert first + len(found) >= durable, crash
            assert first + len(found) in {len(written)} | {3 * at + more for at in range(24) for more in (0, 1)}
            assert again.corrupt == 0, crash
            assert all(index.find(hashed(key), NOW) is not None for key in keys[:known]), crash
        seen += 1
    assert seen > 100


def test_no_crash_while_keys_without_records_go_loses_one_or_passes_for_damage(tmp_path: Path) -> None:
    """`note` is what was durable: (acked, keys, records)."""
    path = tmp_path / "disk" / "spool"
    path.parent.mkdir()
    keys: list[str] = []
    acked = records = 0
    with SimulatedDisk(path.parent) as disk:
        folder = opened(path, segment_bytes=200)
        for at in range(4):
            folder.append([request([b"record"], key=f"key-{at}")])
            end, records = folder.records_end, at + 1
            disk.note = (acked, len(keys), records)
            for more in range(5):
                keys.append(f"key-{at}-{more}")
                folder.append([request(key=keys[-1])])
            disk.note = (acked, len(keys), records)
            if at % 2:
                acked = end
                disk.note = (acked, len(keys), records)
                if at == 3:
                    folder.roll()
                folder.remove(acked, NOW)
        assert folder.size == 0
        folder.close()
    for crash in disk.crashes(per_step=12):
        first, known, stored = crash.note or (0, 0, 0)
        crash.lay_out(tmp_path / "after")
        for _ in range(2):
            index = SpoolKeys(tmp_path / "after" / "spool", DAY)
            again = SpoolFolder(tmp_path / "after" / "spool", 200, index)
            again.open(first, first)
            found = records_in(again, after=first)
            again.close()
            acked_records = {0: 0}.get(first, 4 if first == acked else 2)
            assert acked_records + len(found) >= stored, crash
            assert again.corrupt == 0, crash
            assert all(index.find(hashed(key), NOW) is not None for key in keys[:known]), crash


class SpoolMachine(RuleBasedStateMachine):
    """A spool against a list of records, through crashes that leave a torn end, and damage to what was safe."""

    def __init__(self) -> None:
        super().__init__()
        self.path = Path(tempfile.mkdtemp())
        self.written: list[tuple[int, bytes]] = []
        self.lost: set[int] = set()
        self.acked = 0
        self.number = 0
        self.folder = opened(self.path, segment_bytes=300)

    def teardown(self) -> None:
        self.folder.close()
        shutil.rmtree(self.path)

    @rule(sizes=st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=3), min_size=1, max_size=4))
    def append(self, sizes: list[list[int]]) -> None:
        requests = []
        at = self.folder.position
        for parts in sizes:
            blocks = []
            for count in parts:
                lines = []
                for _ in range(count):
                    self.number += 1
                    lines.append(b"record %d" % self.number)
                    at += len(lines[-1]) + 1
                    self.written.append((at, lines[-1]))
                blocks.append(lines)
            requests.append(request(*blocks))
        self.folder.append(requests)

    @rule(count=st.integers(1, 6))
    def append_keys(self, count: int) -> None:
        """Requests without a record take positions that nobody acks."""
        for _ in range(count):
            self.number += 1
            self.folder.append([request(key=f"key {self.number}")])

    @rule()
    def make_room(self) -> None:
        """When all is acked nothing needs to stay."""
        if self.folder.is_done(self.acked):
            self.folder.roll()
            self.folder.remove(self.acked, NOW)
            assert self.folder.size == 0
            assert list(self.path.glob("*.seg")) == []

    @precondition(lambda self: self.written)
    @rule(data=st.data())
    def ack(self, data: st.DataObject) -> None:
        positions = [position for position, _ in self.written if position >= self.acked]
        self.acked = data.draw(st.sampled_from(positions or [self.acked]))
        self.folder.remove(self.acked, NOW)

    @rule(torn=st.binary(max_size=200), known=st.booleans())
    def crash(self, torn: bytes, known: bool) -> None:
        """The end of the last segment is whatever a group left that was never durable."""
        self.folder.close()
        segments = sorted(self.path.glob("*.seg"))
        if segments and torn:
            with segments[-1].open("ab") as last:
                last.write(torn)
        alive = [position for position, _ in self.written if position not in self.lost]
        read_to = max(alive, default=self.acked) if known else self.acked
        self.folder = opened(self.path, acked=self.acked, known_to=max(self.acked, read_to), segment_bytes=300)
        assert self.folder.corrupt == 0

    @rule(data=st.data())
    def damage(self, data: st.DataObject) -> None:
        """A byte of what was safe goes wrong: its segment's records from there on may be lost, no other."""
        self.folder.close()
        segments = sorted(self.path.glob("*.seg"))
        if len(segments) > 1:
            at = data.draw(st.integers(0, len(segments) - 2))
            content = bytearray(segments[at].read_bytes())
            content[data.draw(st.integers(0, len(content) - 1))] ^= 0x40
            segments[at].write_bytes(content)
            first, following = int(segments[at].stem), int(segments[at + 1].stem)
            self.lost |= {position for position, _ in self.written if first < position <= following}
        self.folder = opened(self.path, acked=self.acked, known_to=self.acked, segment_bytes=300)

    @invariant()
    def everything_is_there_once_and_in_order(self) -> None:
        expected = [record for position, record in self.written if position > self.acked]
        needed = [r for position, r in self.written if position > self.acked and position not in self.lost]
        found = records_in(self.folder, after=self.acked)
        remaining = iter(expected)
        assert all(record in remaining for record in found)
        assert set(needed) <= set(found)


SpoolMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
TestSpoolMachine = SpoolMachine.TestCase
