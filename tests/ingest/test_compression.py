"""gzip step by step: the same bytes however it is cut, never more at once than asked for, all before a fault."""

import gzip
import random
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streambatch.ingest.compression import Corrupt, Gunzip

MIB = 1 << 20
_RANDOM = random.Random(7)
TEXT = b"".join(b'{"id":%d,"value":%f}\n' % (i, _RANDOM.random()) for i in range(2_000))


def inflate(raw: bytes, *, block: int = 64 << 10, size: int = MIB) -> tuple[bytes, Corrupt | None]:
    """Return what comes out, and the fault that ends it."""
    gunzip, out = Gunzip(), []
    try:
        for at in range(0, len(raw), block):
            gunzip.give(raw[at : at + block])
            while not gunzip.needs_input():
                out.append(gunzip.inflate(size))
                assert len(out[-1]) <= size
        gunzip.end()
    except Corrupt as fault:
        return b"".join(out), fault
    return b"".join(out), None


@settings(deadline=None)
@given(
    st.lists(st.binary(max_size=2000).map(lambda data: data * 3), max_size=6),
    st.integers(1, 3000),
    st.integers(1, 5000),
    st.integers(0, 50),
)
def test_members_come_out_as_they_went_in(members: list[bytes], block: int, size: int, padding: int) -> None:
    raw = b"".join(gzip.compress(member, 1) for member in members)
    raw += b"\0" * padding if members else b""
    assert inflate(raw, block=block, size=size) == (b"".join(members), None)


def test_many_tiny_members() -> None:
    lines = [b"%d\n" % i for i in range(3000)]
    assert inflate(b"".join(map(gzip.compress, lines))) == (b"".join(lines), None)


def test_a_bomb_comes_out_in_steps() -> None:
    gunzip = Gunzip()
    gunzip.give(gzip.compress(bytes(64 * MIB)))
    steps = []
    while not gunzip.needs_input():
        steps.append(len(gunzip.inflate(MIB)))
    gunzip.end()
    assert sum(steps) == 64 * MIB
    assert max(steps) == MIB


@settings(deadline=None, max_examples=50)
@given(st.data())
def test_what_comes_before_a_fault_does_not_depend_on_the_cut(data: st.DataObject) -> None:
    raw = bytearray(gzip.compress(TEXT))
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at] ^= data.draw(st.integers(1, 255))
    block, size = data.draw(st.integers(500, 100_000)), data.draw(st.integers(100, 100_000))
    out, fault = inflate(bytes(raw), block=block, size=size)
    whole, whole_fault = inflate(bytes(raw), block=len(raw), size=len(TEXT) * 2)
    assert out == whole
    assert str(fault) == str(whole_fault)


def test_a_wrong_checksum_is_found_after_all_data() -> None:
    raw = bytearray(gzip.compress(TEXT))
    raw[-8] ^= 1
    out, fault = inflate(bytes(raw))
    assert out == TEXT
    assert fault is not None
    assert fault.offset == len(raw) - 1 - 4
    assert str(fault) == f"the gzip data is corrupt (incorrect data check) at compressed byte {len(raw) - 5}"


@pytest.mark.parametrize("cut", [1, 9, 100, 1000, 10_000])
def test_truncated(cut: int) -> None:
    raw = gzip.compress(TEXT)
    out, fault = inflate(raw[:-cut], size=1000)
    assert TEXT.startswith(out)
    assert out == zlib.decompressobj(31).decompress(raw[:-cut])
    assert fault is not None
    assert (fault.offset, fault.problem) == (len(raw) - cut, "the gzip data ends too early")


@pytest.mark.parametrize("garbage", [b"not gzip", b"\x1f", b"\0\0\0x"])
def test_garbage_after_the_last_member(garbage: bytes) -> None:
    raw = gzip.compress(TEXT)
    out, fault = inflate(raw + garbage)
    assert out == TEXT
    assert fault is not None
    assert fault.offset >= len(raw)


def test_no_gzip_at_all() -> None:
    out, fault = inflate(TEXT)
    assert out == b""
    assert fault is not None
    assert "incorrect header check" in str(fault)


def test_nothing() -> None:
    assert inflate(b"") == (b"", None)
