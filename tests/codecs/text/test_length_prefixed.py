"""Frames: a length, then a body, whatever is in it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streambatch.core.chunks import KEPT_OF_OVERSIZE
from tests.codecs.framed import Framed, chunks_in, cut, places, records_in

NAME = "length_prefixed"


def frame(body: bytes) -> bytes:
    return len(body).to_bytes(4, "big") + body


@given(st.lists(st.binary(max_size=30), max_size=10), places())
def test_what_was_framed_comes_out(bodies: list[bytes], places: list[int]) -> None:
    data = b"".join(map(frame, bodies))
    assert [record for record, _, _ in records_in(NAME, cut(data, places))] == bodies


def test_positions_and_chunks() -> None:
    data = frame(b"abc") + frame(b"") + frame(b"\n\n")
    (chunk,) = chunks_in(NAME, [data], position=50)
    assert chunk.payload is data
    assert chunk.ends.tolist() == [7, 11, 17]
    assert records_in(NAME, [data], position=50) == [Framed(b"abc", 57), Framed(b"", 61), Framed(b"\n\n", 67)]


@pytest.mark.parametrize("step", [1, 3, 7, 1000])
def test_an_oversize_record_is_passed_over(step: int) -> None:
    data = frame(b"before") + frame(b"x" * 100) + frame(b"after")
    before, dead, after = records_in(NAME, cut(data, range(0, len(data), step)), max_record_bytes=10)
    assert (before.record, after.record) == (b"before", b"after")
    assert (dead.record, dead.position) == (b"x" * 100, len(data) - 9)
    assert dead.fault is not None
    assert (dead.fault.reason, dead.fault.truncated) == ("oversize", False)
    assert dead.fault.error == "max_record_bytes: expected at most 10 B, found 100 B"


def test_the_limit_itself_is_allowed() -> None:
    fits, over = records_in(NAME, [frame(b"x" * 10) + frame(b"x" * 11)], max_record_bytes=10)
    assert fits.fault is None
    assert over.fault is not None


def test_a_record_of_10_mib_is_not_buffered() -> None:
    body = bytes(range(256)) * (10 << 12)
    data = frame(body) + frame(b"after")
    blocks = [data[at : at + 64_000] for at in range(0, len(data), 64_000)]
    dead, after = records_in(NAME, blocks)  # which checks what is pending
    assert dead.record == body[:KEPT_OF_OVERSIZE]
    assert dead.fault is not None
    assert dead.fault.truncated
    assert dead.fault.error == "max_record_bytes: expected at most 1 MiB, found 10 MiB"
    assert after == Framed(b"after", len(data))


@pytest.mark.parametrize("cut_off", [False, True])
@pytest.mark.parametrize(
    ("tail", "record", "error"),
    [
        (b"\0\0", b"\0\0", "record: expected a length of 4 bytes, found the input cut off after 2"),
        (b"\0\0\0\5", b"", "record: expected 5 bytes, found the input cut off after 0"),
        (b"\0\0\0\5abc", b"abc", "record: expected 5 bytes, found the input cut off after 3"),
    ],
)
def test_a_partial_frame_was_cut_off(tail: bytes, record: bytes, error: str, cut_off: bool) -> None:
    good, dead = records_in(NAME, [frame(b"x") + tail], cut_off=cut_off)
    assert good == Framed(b"x", 5)
    assert (dead.record, dead.position) == (record, 5 + len(tail))
    assert dead.fault is not None
    assert (dead.fault.reason, dead.fault.error) == ("cut_off", error)


def test_a_client_that_speaks_another_protocol_is_told_by_the_length_it_seems_to_give() -> None:
    request = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
    ((record, position, fault),) = records_in(NAME, [request])
    assert (record, position) == (request[4:], len(request))
    assert fault is not None
    assert (fault.reason, fault.truncated) == ("oversize", False)
    assert fault.error == "max_record_bytes: expected at most 1 MiB, found 1.114 GiB"
