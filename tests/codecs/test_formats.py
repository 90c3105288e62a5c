"""What holds for every framing, whatever the bytes."""

from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streambatch.codecs.formats import (
    FORMATS,
    STREAMS,
    InputFormat,
    OutputFormat,
    StreamFormat,
    TextFormat,
    container_for,
    format_of,
    framing,
    framing_for_format,
)
from streambatch.core.errors import OptionError
from tests.codecs.framed import chunks_in, cut, framer_of, made_of, places, records_in, told

LINES = made_of(b"a", b"\n", b"\r", b"\r\n", b"\n\n", b" ", b"long enough")
ROWS = made_of(b'"', b'""', b",", b"\n", b"\r\n", b"a", b',"', b'",', b'"\n', b"\n\n", b'5" pipe')
FRAMES = st.lists(st.binary(max_size=40).map(lambda body: len(body).to_bytes(4, "big") + body), max_size=8).map(
    b"".join
)
ANYTHING = st.one_of(
    st.tuples(st.just("lines"), LINES),
    st.tuples(st.just("csv"), ROWS),
    st.tuples(st.just("length_prefixed"), FRAMES | made_of(b"\0", b"\0\0\0\1", b"\0\0\0\x7f")),
)
SIZES = st.sampled_from([1, 2, 3, 5, 12, 1000])


@given(ANYTHING, places(), SIZES, st.booleans())
def test_where_the_bytes_are_cut_makes_no_difference(
    case: tuple[str, bytes], places: list[int], max_record_bytes: int, cut_off: bool
) -> None:
    name, data = case
    whole = records_in(name, [data], max_record_bytes=max_record_bytes, cut_off=cut_off)
    assert records_in(name, cut(data, places), max_record_bytes=max_record_bytes, cut_off=cut_off) == whole


@given(ANYTHING, SIZES)
def test_reading_on_from_the_position_of_any_record_gives_the_rest(case: tuple[str, bytes], size: int) -> None:
    name, data = case
    chunks = chunks_in(name, [data], max_record_bytes=size)
    columns = chunks[0].columns if chunks else None
    records = told(name, chunks)
    for at, record in enumerate(records, 1):
        rest = [data[record.position :]]
        again = records_in(name, rest, max_record_bytes=size, position=record.position, columns=columns)
        assert again == records[at:]


@given(ANYTHING, SIZES)
def test_records_come_in_order_and_within_what_was_read(case: tuple[str, bytes], size: int) -> None:
    name, data = case
    positions = [record.position for record in records_in(name, [data], max_record_bytes=size)]
    assert positions == sorted(set(positions))
    assert all(0 < position <= len(data) for position in positions)


@given(ANYTHING, SIZES)
def test_only_what_is_too_long_is_oversize(case: tuple[str, bytes], size: int) -> None:
    name, data = case
    for record, _, fault in records_in(name, [data], max_record_bytes=size):
        if fault is None:
            assert len(record) <= size
        elif name != "length_prefixed":
            assert fault.reason == "oversize"
            assert len(record) > size
            assert not fault.truncated


@pytest.mark.parametrize("name", ["lines", "csv", "length_prefixed"])
def test_chunks_carry_what_the_framer_was_given(name: str) -> None:
    origin = object()
    columns = ("x", "y")
    framer = framer_of(name, max_record_bytes=9, position=100, columns=columns, origin=origin)
    chunks = framer.feed(b"\0\0\0\2\n\n" if name == "length_prefixed" else b"ab\n", 7.0)
    assert [(chunk.origin, chunk.columns, chunk.arrived_at) for chunk in chunks] == [(origin, columns, 7.0)]


def test_a_framer_goes_on_after_an_end() -> None:
    framer = framer_of("lines", max_record_bytes=9)
    chunks = framer.feed(b"a\nb", 0.0) + framer.end(0.0) + framer.feed(b"c\n", 0.0)
    assert [record[:2] for record in told("lines", chunks)] == [(b"a", 2), (b"b", 3), (b"c", 5)]


def test_formats_stand_for_a_framing_and_a_codec() -> None:
    found = {name: (format.framing.name, type(format.new_codec()).__name__) for name, format in FORMATS.items()}
    assert found == {
        "jsonl": ("lines", "JsonCodec"),
        "csv": ("csv", "CsvCodec"),
        "length_prefixed": ("length_prefixed", "JsonCodec"),
        "arrow": ("none", "ArrowCodec"),
        "parquet": ("none", "ParquetCodec"),
    }
    names = [framing_for_format(format).name for format in FORMATS]
    assert names == ["lines", "csv", "length_prefixed", "none", "none"]


def test_the_aliases_name_what_the_table_has() -> None:
    outputs = [name for name, format in FORMATS.items() if format.container is not None]
    assert list(get_args(InputFormat)) == list(FORMATS)
    assert get_args(StreamFormat) == STREAMS
    assert list(get_args(OutputFormat)) == outputs
    assert list(get_args(TextFormat)) == [name for name in outputs if name in STREAMS]


@pytest.mark.parametrize("name", get_args(OutputFormat))
def test_the_table_says_of_whole_files_what_their_container_does(name: OutputFormat) -> None:
    assert container_for(name, "none", b"").is_whole_only == FORMATS[name].is_whole_only


def test_unknown_names_are_refused_with_those_there_are() -> None:
    with pytest.raises(OptionError, match="format: found 'xml'; allowed: jsonl, csv, length_prefixed"):
        format_of("xml")
    with pytest.raises(OptionError, match="framing: found 'words'; allowed: lines, csv, length_prefixed"):
        framing("words")
