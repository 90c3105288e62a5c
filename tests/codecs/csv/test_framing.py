"""CSV records: newlines in quotes, stray quotes, headers, and one bad quote that must not eat the rest."""

import csv
import io
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streambatch.codecs.csv.framing import fields_of
from tests.codecs.framed import MIB, Framed, chunks_in, cut, framer_of, made_of, places, records_in

ROWS = made_of(b'"', b'""', b",", b"\n", b"\r\n", b"a", b',"', b'",', b'"\n', b"\n\n", b'5" pipe')
COLUMNS = ("a", "b")


def records(*blocks: bytes, columns: tuple[str, ...] | None = COLUMNS, **options: Any) -> list[bytes]:
    return [record for record, _, _ in records_in("csv", blocks, columns=columns, **options)]


def columns_of(*blocks: bytes) -> tuple[str, ...] | None:
    framer: Any = framer_of("csv", max_record_bytes=MIB)
    for block in blocks:
        framer.feed(block, 0.0)
    framer.end(0.0)
    columns: tuple[str, ...] | None = framer.columns
    return columns


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"1,2\n3,4\n", [b"1,2", b"3,4"]),
        (b'"a\nb",2\n3,4', [b'"a\nb",2', b"3,4"]),
        (b'"a\r\nb",2\r\n3,4\r\n', [b'"a\r\nb",2', b"3,4"]),
        (b'"a""\n""b",2\n', [b'"a""\n""b",2']),
        (b'"",""\n', [b'"",""']),
        (b'"""",1\n"""\n""",2\n', [b'"""",1', b'"""\n""",2']),
        (b'5" pipe,1\n6" pipe,2\n', [b'5" pipe,1', b'6" pipe,2']),
        (
            b"37\xc2\xb036'37.8\"N 121\xc2\xb02'17.9\"W,M\nx,y\n",
            [b"37\xc2\xb036'37.8\"N 121\xc2\xb02'17.9\"W,M", b"x,y"],
        ),
        (b'5" pipe,"a\nb"\nx,y\n', [b'5" pipe,"a\nb"', b"x,y"]),
        (b'"a"b,"\n",1\n2,3\n', [b'"a"b,"\n",1', b"2,3"]),
        (b'"a"b"\n",1\n', [b'"a"b"', b'",1\n']),
        (b'a""b\n"c\n"\n', [b'a""b', b'"c\n"']),
        (b'1,"a\n', [b'1,"a\n']),
        (b'\n\n1,2\n\r\n"\n\n",2\n\n', [b"1,2", b'"\n\n",2']),
        (b"1,2\r3,4\n", [b"1,2\r3,4"]),
    ],
)
def test_what_rows_hold(data: bytes, expected: list[bytes]) -> None:
    assert records(data) == expected
    assert records(*cut(data, range(len(data)))) == expected


def by_hand(data: bytes) -> list[bytes]:
    """The records of CSV, a character at a time."""
    found, start, state = [], 0, "start"
    for at, character in enumerate(data.decode("latin-1")):
        if state == "closed":
            state = "open" if character == '"' else "plain"
            if state == "open":
                continue
        if state == "open":
            state = "closed" if character == '"' else "open"
        elif character == "\n":
            found.append(data[start:at].removesuffix(b"\r"))
            start, state = at + 1, "start"
        elif character == ",":
            state = "start"
        else:
            state = "open" if state == "start" and character == '"' else "plain"
    return [record for record in [*found, data[start:].removesuffix(b"\r")] if record]


@given(ROWS, places())
def test_the_same_records_as_a_character_at_a_time(data: bytes, places: list[int]) -> None:
    expected = by_hand(data.removeprefix(b"\xef\xbb\xbf"))
    assert records(*cut(data, places)) == expected


@given(st.lists(st.lists(st.text(alphabet='a", \n\r;é', max_size=6), min_size=2, max_size=3), max_size=12), places())
def test_what_python_writes_is_found_and_read(rows: list[list[str]], places: list[int]) -> None:
    out = io.StringIO()
    csv.writer(out, quoting=csv.QUOTE_ALL).writerows(rows)
    found = records(*cut(out.getvalue().encode(), places))
    assert [fields_of(record.decode()) for record in found] == rows


def test_the_first_record_is_the_header_and_no_record() -> None:
    chunks = chunks_in("csv", [b"\n", b'time,"a ""b""\nc"\r', b"\n1,2\n", b"3,4\n"])
    assert [chunk.columns for chunk in chunks] == [("time", 'a "b"\nc')] * 2
    assert [chunk.position for chunk in chunks] == [23, 27]
    assert records_in("csv", [b"x\n1\n2\n"]) == [Framed(b"1", 4), Framed(b"2", 6)]


@pytest.mark.parametrize(
    "data", [b"", b"a,b", b"a,b\n", b"\n\na,b\n\n", b"\xef\xbb\xbf", b"\xef\xbb", b"\xef\xbb\xbfa,b\n"]
)
@pytest.mark.parametrize("cut_off", [False, True])
def test_a_header_alone_is_no_record(data: bytes, cut_off: bool) -> None:
    assert records_in("csv", [data], cut_off=cut_off) == []
    assert records_in("csv", cut(data, range(len(data))), cut_off=cut_off) == []


def test_a_byte_order_mark_is_passed_over() -> None:
    data = b'\xef\xbb\xbf"a\n1",b\n1,2\n'
    for blocks in ([data], cut(data, range(len(data)))):
        assert columns_of(*blocks) == ("a\n1", "b")
        assert records_in("csv", blocks) == [Framed(b"1,2", len(data))]
    assert columns_of(b"\xef\xbba,b\n") == ("\ufffda", "b")
    assert records(b"\xef\xbb\xbf1,2\n") == [b"1,2"]


def test_header_bytes_that_are_not_utf8_are_replaced() -> None:
    assert columns_of(b"a\xff,b\n1,2\n") == ("a\ufffd", "b")


@pytest.mark.parametrize("header", [b'"a"b,c\n', b"a\rb,c\n"])
def test_a_malformed_header_names_no_columns(header: bytes) -> None:
    assert columns_of(header + b"1,2\n") == ()


def test_an_oversize_header_is_one_dead_record_and_names_no_columns() -> None:
    header, row = chunks_in("csv", [b"a" * 30 + b"\n1,2\n"], max_record_bytes=10)
    assert header.fault is not None
    assert header.fault.reason == "oversize"
    assert row.columns == ()


def test_to_start_in_mid_stream_takes_the_columns() -> None:
    with pytest.raises(ValueError, match="the columns are needed to read CSV from byte 10 on"):
        framer_of("csv", max_record_bytes=10, position=10)
    assert records_in("csv", [b"1,2\n"], position=10, columns=COLUMNS) == [Framed(b"1,2", 14)]


@pytest.mark.parametrize("step", [1, 7, 100, 100_000])
def test_a_quote_that_never_closes_eats_no_more_than_the_limit(step: int) -> None:
    rows = b"".join(b"%04d,x\n" % n for n in range(200))
    data = b'0,"oops\n' + rows
    dead, *rest = records_in("csv", cut(data, range(0, len(data), step)), columns=COLUMNS, max_record_bytes=100)
    assert dead.fault is not None
    assert dead.fault.reason == "oversize"
    assert dead.record == data[: dead.position - 1]
    assert 100 < len(dead.record) <= 100 + len(b"0000,x\n")
    assert all(fault is None for _, _, fault in rest)
    assert [record for record, _, _ in rest] == rows[dead.position - len(b'0,"oops\n') :].splitlines()


def test_each_oversize_record_of_a_block_is_alone() -> None:
    data = b"1,2\n" + b'"' + b"x\n" * 5000
    good, *dead = records_in("csv", [data], columns=COLUMNS, max_record_bytes=6)
    assert good.record == b"1,2"
    assert dead[0].record == b'"x\nx\nx\nx'
    assert all(record == b"x" for record, _, _ in dead[1:])
    assert len(dead) == 4997


def test_a_huge_quoted_field_in_small_blocks() -> None:
    field = b'"' + b'x""\n' * 50_000 + b'"'
    data = b"1," + field + b"\n3,4\n"
    assert records(*cut(data, range(0, len(data), 100))) == [b"1," + field, b"3,4"]


def test_a_record_of_a_million_fields() -> None:
    row = b'5",' + b'"a""b""",' * 100_000
    assert records(row + b"\n1,2\n") == [row, b"1,2"]


def test_a_half_row_that_was_cut_off_is_dead() -> None:
    good, dead = records_in("csv", [b'a,b\n1,2\n3,"4'], cut_off=True)
    assert good.record == b"1,2"
    assert dead.fault is not None
    assert (dead.record, dead.fault.reason) == (b'3,"4', "cut_off")


@pytest.mark.parametrize(
    ("record", "fields"),
    [
        ("", [""]),
        ("a", ["a"]),
        ("a,", ["a", ""]),
        (',"",', ["", "", ""]),
        ('"a ""b"" c",d', ['a "b" c', "d"]),
        ('5" pipe,""', ['5" pipe', ""]),
        (' "a"', [' "a"']),
        ('"a,b\r\nc"', ["a,b\r\nc"]),
    ],
)
def test_the_fields_of_a_record(record: str, fields: list[str]) -> None:
    assert fields_of(record) == fields


@pytest.mark.parametrize(
    ("record", "error"),
    [
        ('1,"a"b', "expected a comma after the closing quote of field 2, found more text"),
        ('1,"a', "expected a closing quote in field 2, found the end of the record"),
        ('"', "expected a closing quote in field 1, found the end of the record"),
        ("1,2\r3", "expected no carriage return outside quotes, found one in field 2"),
    ],
)
def test_what_is_wrong_with_a_record(record: str, error: str) -> None:
    with pytest.raises(ValueError, match=error):
        fields_of(record)
