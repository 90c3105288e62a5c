"""Lines: what ends them, what is none, what is too long, what was cut off."""

from typing import Any

import pytest
from hypothesis import given

from streambatch.codecs.formats import framing
from streambatch.codecs.text.lines import newlines
from streambatch.core.chunks import KEPT_OF_OVERSIZE
from tests.codecs.framed import MIB, Framed, chunks_in, cut, framer_of, made_of, places, records_in


def records(*blocks: bytes, **options: Any) -> list[bytes]:
    return [record for record, _, _ in records_in("lines", blocks, **options)]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", []),
        (b"a", [b"a"]),
        (b"a\n", [b"a"]),
        (b"a\nb", [b"a", b"b"]),
        (b"a\r\nb\r\n", [b"a", b"b"]),
        (b"a\rb\n", [b"a\rb"]),
        (b"a\r\r\n", [b"a\r"]),
        (b"\n\r\n\na\n\n\r\nb\n\n", [b"a", b"b"]),
        (b"\n", []),
        (b"\r", []),
        (b"\n\n\n", []),
        (b" \n\t\n", [b" ", b"\t"]),
        (b"\rx\n", [b"\rx"]),
        (b"a\r", [b"a"]),
        (b"\0\n\xff\n", [b"\0", b"\xff"]),
        (b"a\x0bb\x0cc\xc2\x85d\xe2\x80\xa8e\n", [b"a\x0bb\x0cc\xc2\x85d\xe2\x80\xa8e"]),
    ],
)
def test_what_lines_hold(data: bytes, expected: list[bytes]) -> None:
    assert records(data) == expected
    assert records(*cut(data, range(len(data)))) == expected


@given(made_of(b"a", b"\n", b"\r", b"\r\n", b"\n\n"), places())
def test_the_same_lines_as_python_splits(data: bytes, places: list[int]) -> None:
    expected = [line.removesuffix(b"\r") for line in data.split(b"\n")]
    assert records(*cut(data, places)) == [line for line in expected if line]


@given(made_of(b"a", b"\n", b"a longer line", max_size=200))
def test_small_and_large_blocks_are_searched_alike(data: bytes) -> None:
    padded = data + b"x" * (4 << 10)
    assert newlines(data).tolist() == newlines(padded).tolist() == [i + 1 for i, byte in enumerate(data) if byte == 10]


def test_positions_are_offsets_after_the_newline() -> None:
    data = b"\nab\r\n\ncd\nef"
    assert records_in("lines", [data], position=1000) == [
        Framed(b"ab", 1005),
        Framed(b"cd", 1009),
        Framed(b"ef", 1011),
    ]


def test_a_block_of_whole_lines_is_not_copied() -> None:
    block = b"a\nb\n"
    (chunk,) = framer_of("lines", max_record_bytes=9).feed(block, 0.0)
    assert chunk.payload is block


def test_every_chunk_of_whole_records_ends_with_a_newline() -> None:
    chunks = chunks_in("lines", [b"a\nb", b"c\n\n", b"d"])
    assert [bytes(chunk.data()) for chunk in chunks] == [b"a\n", b"bc\n", b"d\n"]
    assert [chunk.position for chunk in chunks] == [2, 5, 7]


def test_an_oversize_line_is_one_dead_record_between_its_neighbours() -> None:
    chunks = chunks_in("lines", [b"a\n" + b"x" * 20 + b"\r\nb\n"], max_record_bytes=10)
    assert [chunk.count for chunk in chunks] == [1, 1, 1]
    assert [chunk.position for chunk in chunks] == [2, 24, 26]
    fault = chunks[1].fault
    assert fault is not None
    assert (fault.reason, fault.truncated) == ("oversize", False)
    assert fault.error == "max_record_bytes: expected at most 10 B, found 20 B"
    assert bytes(chunks[1].data()) == b"x" * 20


@pytest.mark.parametrize("ending", [b"\n", b"\r\n", b""])
def test_the_limit_counts_a_line_without_its_ending(ending: bytes) -> None:
    fits, over = b"x" * 10 + ending, b"x" * 11 + ending
    for blocks in ([fits], cut(fits, range(20))):
        assert records_in("lines", blocks, max_record_bytes=10) == [Framed(b"x" * 10, len(fits))]
    for blocks in ([over], cut(over, range(20))):
        ((_, position, fault),) = records_in("lines", blocks, max_record_bytes=10)
        assert position == len(over)
        assert fault is not None
        assert fault.error == "max_record_bytes: expected at most 10 B, found 11 B"


@pytest.mark.parametrize("block_bytes", [1000, 64 << 10, 1 << 20, 20 << 20])
def test_a_line_of_10_mib_is_passed_over_in_bounded_memory(block_bytes: int) -> None:
    long = b"head" + b"x" * ((10 << 20) - 4)
    data = b"before\n" + long + b"\nafter\n"
    blocks = [data[at : at + block_bytes] for at in range(0, len(data), block_bytes)]
    before, dead, after = records_in("lines", blocks)  # which checks what is pending
    assert (before.record, after.record) == (b"before", b"after")
    assert dead.record == long[:KEPT_OF_OVERSIZE]
    assert dead.position == len(data) - len(b"after\n")
    assert dead.fault is not None
    assert dead.fault.truncated
    assert dead.fault.error == "max_record_bytes: expected at most 1 MiB, found 10 MiB"


def test_a_line_just_over_the_limit_says_so_in_bytes() -> None:
    ((_, _, fault),) = records_in("lines", [b"x" * (MIB + 1)])
    assert fault is not None
    assert fault.error == "max_record_bytes: expected at most 1048576 B, found 1048577 B"


def test_a_large_limit_admits_a_large_line() -> None:
    line = b"x" * (10 << 20)
    assert records(*cut(line + b"\n", range(0, len(line), 64 << 10)), max_record_bytes=16 << 20) == [line]


def test_a_half_line_that_was_cut_off_is_dead() -> None:
    good, dead = records_in("lines", [b'{"id": 1}\n{"id"', b": 2"], cut_off=True)
    assert good.fault is None
    assert (dead.record, dead.position) == (b'{"id": 2', 18)
    assert dead.fault is not None
    assert dead.fault.reason == "cut_off"
    assert dead.fault.error == "record: expected a line ending, found the input cut off after 8 B"
    assert not dead.fault.truncated


@pytest.mark.parametrize("data", [b"", b"a\n", b"a\n\n", b"a\n\r"])
def test_a_cut_between_lines_kills_nothing(data: bytes) -> None:
    assert all(fault is None for _, _, fault in records_in("lines", [data], cut_off=True))


@pytest.mark.parametrize("cut_off", [False, True])
def test_an_unterminated_line_over_the_limit_is_oversize(cut_off: bool) -> None:
    for size in (11, 100_000):
        ((record, position, fault),) = records_in("lines", [b"x" * size], max_record_bytes=10, cut_off=cut_off)
        assert (len(record), position) == (min(size, KEPT_OF_OVERSIZE), size)
        assert fault is not None
        assert (fault.reason, fault.truncated) == ("oversize", size > KEPT_OF_OVERSIZE)


def test_a_line_in_a_thousand_blocks_is_searched_once() -> None:
    class Counted(bytes):
        searched = 0

        def find(self, *args: object) -> int:
            Counted.searched += len(self)
            return super().find(*args)  # type: ignore[arg-type]

    records(*[Counted(b"x" * 100) for _ in range(1000)])
    assert Counted.searched == 100_000


def test_stripping_leaves_the_bytes_of_the_record() -> None:
    strip = framing("lines").strip
    for raw, record in [
        (b"a\n", b"a"),
        (b"a\r\n", b"a"),
        (b"\n\r\n a \r\n", b" a "),
        (b"a", b"a"),
        (b"\r\r\n", b"\r"),
        (b"\n", b""),
    ]:
        assert strip(memoryview(raw)) == record
