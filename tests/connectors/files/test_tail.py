"""Decisions about followed files, on a disk made of dictionaries: no byte lost, doubled or in another file's place."""

from itertools import count

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from streambatch.connectors.files.followed import Followed
from streambatch.connectors.files.globs import FileStat
from streambatch.connectors.files.identity import HEAD_BYTES, NOTHING_KNOWN, identity_of
from streambatch.connectors.files.tail import Held, Tail

NAMES = st.sampled_from(["log", "log.1", "log.2", "other"])
ROTATE_WAIT = 5.0


class Content:
    """What was written to a file since it was created or cut back; different in every byte from any other."""

    def __init__(self, number: int) -> None:
        self.pattern = b"%d;" % number
        self.raw = b""

    def grow(self, size: int) -> None:
        at = len(self.raw)
        self.raw = (self.pattern * (1 + (at + size) // len(self.pattern)))[: at + size]


class Following(RuleBasedStateMachine):
    """Writers rotate, delete and cut back as they like; a reader looks and reads now and then."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = count(1)
        self.inodes: dict[int, Content] = {}
        self.names: dict[str, int] = {}
        self.modified: dict[int, int] = {}
        self.ticks = count(1)
        self.now = 0.0
        self.was_blurred = False
        self.tail = Tail(ROTATE_WAIT)
        self.handles: dict[Followed, int] = {}
        self.delivered: dict[str, list[tuple[Content, int, bytes]]] = {}

    # What writers do.

    @rule(name=NAMES, size=st.integers(0, 9000))
    def write(self, name: str, size: int) -> None:
        if name not in self.names:
            inode = next(i for i in count(1) if i not in {*self.names.values(), *self.handles.values()})
            self.names[name], self.inodes[inode] = inode, Content(next(self.numbers))
        self._change(name).grow(size)

    @rule(old=NAMES, new=NAMES)
    def rename(self, old: str, new: str) -> None:
        if old in self.names and old != new:
            self.names[new] = self.names.pop(old)

    @rule(name=NAMES)
    def delete(self, name: str) -> None:
        self.names.pop(name, None)

    @rule(name=NAMES, size=st.integers(0, 9000))
    def cut_back(self, name: str, size: int) -> None:
        if name in self.names:
            self.inodes[self.names[name]] = Content(next(self.numbers))
            self._change(name).grow(size)

    @rule()
    def rotate(self) -> None:
        self.rename("log.1", "log.2")
        self.rename("log", "log.1")
        self.write("log", 100)

    # What the reader does.

    @rule(blurred=st.none() | NAMES, seconds=st.sampled_from([0.0, 1.0, ROTATE_WAIT]))
    def look(self, blurred: str | None, seconds: float) -> None:
        """Look; once in a while a folder that is being changed shows a name less than there is."""
        self.now += seconds
        shown = {name: inode for name, inode in self.names.items() if name != blurred or self.was_blurred}
        self.was_blurred = shown != self.names
        stats = {name: FileStat(1, i, len(self.inodes[i].raw), self.modified[i]) for name, i in shown.items()}
        held = {
            file.stat.id: Held(len(self.inodes[inode].raw), int(inode in self.names.values()))
            for file, inode in self.handles.items()
            if inode not in shown.values()
        }
        self.tail.see(stats, held, self.now)
        for file in self.tail.due(self.now):
            self.handles.pop(file, None)
            self.tail.finish(file)

    @rule(size=st.integers(1, 5000), files=st.integers(1, 3))
    def read(self, size: int, files: int) -> None:
        for file in self.tail.next_round(files):
            self._read(file, size)

    @rule()
    @precondition(lambda self: self.handles)
    def close_the_oldest_handle(self) -> None:
        file = next(iter(self.handles))
        if not file.is_missing:
            del self.handles[file]

    @invariant()
    def every_partition_is_the_beginning_of_one_content(self) -> None:
        contents = []
        for parts in self.delivered.values():
            assert len({id(content) for content, _, _ in parts}) == 1
            contents.append(parts[0][0])
            assert b"".join(raw for _, _, raw in parts) == contents[-1].raw[: sum(len(raw) for _, _, raw in parts)]
        assert len(set(map(id, contents))) == len(contents)

    def teardown(self) -> None:
        for _ in range(4):
            self.was_blurred = True
            self.look(None, 0.0)
            while self.tail.has_unread:
                self.read(100_000, 4)
        lengths = {id(parts[0][0]): sum(len(raw) for _, _, raw in parts) for parts in self.delivered.values()}
        for name, inode in self.names.items():
            content = self.inodes[inode]
            assert lengths.get(id(content), 0) == len(content.raw), name

    def _change(self, name: str) -> Content:
        inode = self.names[name]
        self.modified[inode] = next(self.ticks)
        return self.inodes[inode]

    def _read(self, file: Followed, size: int) -> None:
        if file not in self.handles:
            if self.names.get(file.path) != file.stat.inode:
                return self.tail.set_aside(file)
            self.handles[file] = file.stat.inode
            self.tail.started(file, file.offsets.read_to)
        content = self.inodes[self.handles[file]]
        at = file.offsets.read_to
        raw = content.raw[at : at + max(0, min(size, file.size - at))]
        assert self.tail.recognise(file, content.raw[:HEAD_BYTES], len(content.raw)) is file
        if self.tail.accept(file, content.raw[:HEAD_BYTES], len(content.raw), len(raw), self.now):
            if raw:
                self.delivered.setdefault(file.partition, []).append((content, at, raw))
        else:
            self.tail.restart(file, self.now)


TestFollowing = Following.TestCase
TestFollowing.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


def stat(inode: int, size: int, modified: int = 0) -> FileStat:
    return FileStat(1, inode, size, modified)


def test_an_identity_grows_with_the_file_and_fits_what_begins_like_it() -> None:
    short = identity_of(b"abc")
    assert short.fits(b"abc")
    assert short.fits(b"abcdef")
    assert not short.fits(b"ab")
    assert not short.fits(b"abd")
    assert NOTHING_KNOWN.fits(b"")
    assert NOTHING_KNOWN.fits(b"abc")


def test_files_of_the_first_look_come_oldest_first_then_by_name() -> None:
    tail = Tail(ROTATE_WAIT)
    tail.see({"a": stat(1, 9, 20), "c": stat(2, 9, 10), "b": stat(3, 9, 10)}, {}, 0.0)
    order = []
    while tail.has_unread:
        (file,) = tail.next_round(10)
        order.append(file.path)
        assert tail.accept(file, b"x" * 9, 9, 9, 0.0)
    assert order == ["b", "c", "a"]


def test_later_ones_take_turns_but_what_a_renamed_file_was_known_to_hold_comes_first() -> None:
    tail = Tail(ROTATE_WAIT)
    tail.see({}, {}, 0.0)
    tail.see({"log": stat(1, 100)}, {}, 0.0)
    (log,) = tail.next_round(10)
    assert tail.accept(log, b"x" * 100, 100, 50, 0.0)
    tail.see({"log.1": stat(1, 100), "log": stat(2, 10), "other": stat(3, 10)}, {}, 0.0)
    assert tail.next_round(10) == [log]
    assert tail.accept(log, b"x" * 100, 100, 50, 0.0)
    assert sorted(file.path for file in tail.next_round(10)) == ["log", "other"]


def test_a_name_missed_by_one_look_is_neither_renamed_nor_done() -> None:
    tail = Tail(ROTATE_WAIT)
    tail.see({"log": stat(1, 1)}, {}, 0.0)
    (log,) = tail.next_round(1)
    assert tail.accept(log, b"x", 1, 1, 0.0)
    assert tail.see({}, {(1, 1): Held(1, 1)}, 0.0) == []
    assert tail.due(100.0) == []
    assert tail.see({"log": stat(1, 1)}, {}, 100.0) == []
    assert tail.due(200.0) == []


@pytest.mark.parametrize(("links", "event"), [(0, "deleted"), (1, "completed")])
def test_a_file_that_is_gone_is_done_once_it_grew_no_more_for_a_while(links: int, event: str) -> None:
    tail = Tail(ROTATE_WAIT)
    tail.see({"log": stat(1, 1)}, {}, 0.0)
    (log,) = tail.next_round(1)
    assert tail.accept(log, b"x", 1, 1, 0.0)
    tail.see({}, {(1, 1): Held(1, links)}, 10.0)
    assert tail.see({}, {(1, 1): Held(1, links)}, 10.1) == ([log] if links else [])
    assert tail.due(10.0 + ROTATE_WAIT - 0.1) == []
    tail.see({}, {(1, 1): Held(2, links)}, 12.0)
    assert tail.has_unread
    assert tail.due(100.0) == []
    assert tail.next_round(1) == [log]
    assert tail.accept(log, b"xy", 2, 1, 12.0)
    assert tail.due(12.0 + ROTATE_WAIT - 0.1) == []
    assert tail.due(12.0 + ROTATE_WAIT) == [log]
    assert tail.finish(log) == event
    assert tail.due(1000.0) == []


def test_what_is_forgotten_of_a_partial_record_is_read_again_before_the_file_is_done() -> None:
    tail = Tail(ROTATE_WAIT)
    tail.see({"log": stat(1, 9)}, {}, 0.0)
    (log,) = tail.next_round(1)
    assert tail.accept(log, b"x" * 9, 9, 9, 0.0)
    tail.reread(log, 4)
    assert not tail.has_unread
    tail.see({"log.1": stat(1, 9)}, {}, 1.0)
    assert tail.next_round(1) == [log]
    assert tail.accept(log, b"x" * 9, 9, 5, 1.0)
    tail.reread(log, 4)
    assert tail.due(1.0 + ROTATE_WAIT) == []
    assert tail.next_round(1) == [log]


def test_a_file_cut_back_to_less_than_was_read_is_another_though_it_begins_alike() -> None:
    tail, head = Tail(ROTATE_WAIT), b"x" * HEAD_BYTES
    tail.see({"log": stat(1, 9000)}, {}, 0.0)
    (log,) = tail.next_round(1)
    assert tail.accept(log, head, 9000, 9000, 0.0)
    tail.see({"log": stat(1, 8000)}, {}, 1.0)
    assert tail.next_round(1) == [log]
    assert not tail.accept(log, head, 8000, 0, 1.0)
    tail.restart(log, 1.0)
    assert (log.partition, log.offsets.read_to) == ("log#2", 0)
    assert tail.next_round(1) == [log]


def test_a_file_whose_name_led_elsewhere_for_a_moment_is_read_once_it_is_back() -> None:
    tail = Tail(ROTATE_WAIT)
    tail.see({"log": stat(1, 9)}, {}, 0.0)
    (log,) = tail.next_round(1)
    tail.set_aside(log)
    assert not tail.has_unread
    assert tail.wants_look
    tail.see({"log": stat(1, 9)}, {}, 1.0)
    assert tail.next_round(1) == [log]


def test_a_file_whose_length_is_never_reached_is_not_read_without_end() -> None:
    tail = Tail(ROTATE_WAIT)
    tail.see({"log": stat(1, 4096)}, {}, 0.0)
    (log,) = tail.next_round(1)
    assert tail.accept(log, b"1\n", 4096, 2, 0.0)
    assert tail.next_round(1) == [log]
    assert tail.accept(log, b"1\n", 4096, 0, 0.0)
    assert not tail.has_unread


def test_ever_more_names_of_one_path() -> None:
    tail = Tail(0.0)
    names = []
    for inode in range(1, 5):
        tail.see({"log#2": stat(99, 0), "log": stat(inode, 0)}, {}, 0.0)
        while tail.has_unread:
            for file in tail.next_round(9):
                names += [file.partition] if file.path == "log" else []
                tail.accept(file, b"", 0, 0, 0.0)
    assert names == ["log", "log#3", "log#4", "log#5"]


def test_a_file_that_went_before_it_was_open_is_given_up() -> None:
    tail = Tail(ROTATE_WAIT)
    tail.see({"log": stat(1, 9)}, {}, 0.0)
    (log,) = tail.next_round(1)
    tail.set_aside(log)
    tail.see({}, {}, 1.0)
    tail.see({}, {}, 2.0)
    assert not tail.has_unread
    assert tail.due(1.0 + ROTATE_WAIT) == [log]
    assert tail.finish(log) == "deleted"
    tail.see({"log": stat(1, 9)}, {}, 9.0)
    assert [file.partition for file in tail.next_round(1)] == ["log#2"]
