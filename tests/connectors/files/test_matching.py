"""Which file is which after a restart, by what was noted of it."""

import os

from streambatch.connectors.files.globs import FileStat
from streambatch.connectors.files.identity import HEAD_BYTES, identity_of
from streambatch.connectors.files.matching import FoundFile, match
from streambatch.connectors.files.notes import FileNotes, KnownFile, NoteBook, known_files, notes_of
from streambatch.core.checkpoints import SavedPartition

LONG = b"x" * HEAD_BYTES


def known(partition: str, head: bytes, position: int, *, inode: int = 1, device: int = 1, path: str = "") -> KnownFile:
    stat, identity = FileStat(device, inode, len(head), 0, 1), identity_of(head)
    return KnownFile(partition, position, True, notes_of(path or partition, stat, identity), identity)


def found(path: str, head: bytes, size: int | None = None, *, inode: int = 1, device: int = 1) -> FoundFile:
    length = len(head) if size is None else size
    return FoundFile(path, FileStat(device, inode, length, 0, 1), head[:HEAD_BYTES], length)


def names(known: list[KnownFile], found: list[FoundFile]) -> dict[str, str]:
    return {path: each.partition for path, each in match(known, found).items()}


def test_a_file_under_another_name_is_the_same() -> None:
    assert names([known("log", b"ab", 2)], [found("log.1", b"abc"), found("log", b"xy", inode=2)]) == {"log.1": "log"}


def test_a_new_device_number_does_not_matter() -> None:
    before = [known("a", LONG, 9000), known("b", LONG, 9000, inode=2)]
    after = [found("b.1", LONG, 9999, inode=2, device=7), found("a", LONG, 9999, device=7)]
    assert names(before, after) == {"a": "a", "b.1": "b"}


def test_files_that_begin_alike_are_told_apart_by_inode_through_a_rotation() -> None:
    before = [known("log", LONG, 5000, inode=3), known("log.1", LONG, 9000, inode=2)]
    after = [
        found("log", LONG, 5100, inode=4),
        found("log.1", LONG, 6000, inode=3),
        found("log.2", LONG, 9000, inode=2),
    ]
    assert names(before, after) == {"log.1": "log", "log.2": "log.1"}


def test_an_inode_that_another_file_has_by_now_is_no_reason() -> None:
    before = [known("log", b"abc", 3, inode=5)]
    assert names(before, [found("other", b"xyz", inode=5)]) == {}
    assert names(before, [found("other", b"xyz", inode=5), found("copy", b"abcd", inode=6)]) == {"copy": "log"}


def test_a_copy_is_the_file_only_if_nothing_else_can_be() -> None:
    before = [known("log", LONG, 5000, inode=5)]
    copies = [found("a", LONG, 5000, inode=6), found("b", LONG, 5000, inode=7)]
    assert names(before, copies[:1]) == {"a": "log"}
    assert names(before, copies) == {}
    assert names([*before, known("gone", LONG, 5000, inode=8)], copies[:1]) == {}
    assert names(before, [found("a", LONG, 4999, inode=6)]) == {}


def test_copied_away_and_cut_back_the_copy_goes_on() -> None:
    before = [known("log", b"abc", 3)]
    assert names(before, [found("log", b"new"), found("log.1", b"abcd", inode=2)]) == {"log.1": "log"}


def test_what_was_cut_back_or_written_anew_in_its_place_is_matched_and_does_not_fit() -> None:
    before = [known("log", b"abc", 3)]
    for head in (b"", b"ab", b"xyz"):
        assert names(before, [found("log", head)]) == {"log": "log"}
    assert names(before, [found("log", b"xyz", inode=2)]) == {}


def test_a_file_that_was_empty_is_known_by_inode_then_by_path() -> None:
    before = [known("log", b"", 0, inode=5)]
    rotated = [found("log", b"x", inode=6), found("log.1", b"y", inode=5)]
    assert names(before, rotated) == {"log.1": "log"}
    assert names(before, rotated[:1]) == {"log": "log"}


def test_of_two_that_an_inode_had_the_one_that_begins_so_is_meant() -> None:
    before = [known("log", b"abc", 3), known("log#2", b"xyz", 3, path="log")]
    assert names(before, [found("log", b"xyzz")]) == {"log": "log#2"}


def test_a_compressed_file_may_be_shorter_than_its_position() -> None:
    file = found("a", LONG, 5000)._replace(length=None)
    assert names([known("a", LONG, 1 << 30)], [file]) == {"a": "a"}


def test_a_name_that_is_no_utf8_is_known_again() -> None:
    path = os.fsdecode(b"a\xff")
    assert names([known("a\\xff", b"", 0)], [found(path, b"x")]) == {path: "a\\xff"}


def test_notes_are_told_when_they_change_and_come_back() -> None:
    book = NoteBook()
    assert book.changed() == {}
    notes = notes_of("log", FileStat(1, 2, 3, 4, 5), identity_of(b"abc"))
    book.write("log", notes)
    told = book.changed()
    book.write("log", notes)
    assert book.changed() == {}
    (known,) = known_files({"log": SavedPartition(position=2, read_to=3, notes=told["log"] or {})})
    assert (known.notes, known.identity, known.is_acked) == (notes, identity_of(b"abc"), False)
    book.write("log", None)
    assert book.changed() == {"log": None}


def test_reading_goes_on_no_earlier_than_it_began() -> None:
    (known,) = known_files({"log": SavedPartition(position=0, read_to=0, notes={"path": "log", "start": 70})})
    assert known.position == 70


def test_notes_of_a_later_version_are_understood() -> None:
    (known,) = known_files({"log": SavedPartition(position=1, read_to=1, notes={"color": "red"})})
    assert known.notes == FileNotes(path="log")
