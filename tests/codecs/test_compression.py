"""Compressed data in steps: the same bytes however it is cut, never more at once than asked for, all before a fault."""

import bz2
import gzip
import lzma
import random
import zlib
from collections.abc import Callable
from functools import cache

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from streambatch.codecs.compression import Corrupt, Unpacker, detect, unpacker

MIB = 1 << 20
_RANDOM = random.Random(7)
TEXT = b"".join(b'{"id":%d,"value":%f}\n' % (i, _RANDOM.random()) for i in range(2_000))


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "zstd": zstandard.ZstdCompressor(write_checksum=True).compress,
    "xz": lzma.compress,
    "bz2": bz2.compress,
}
OTHERS = ["zstd", "xz", "bz2"]


@cache
def packed(name: str) -> bytes:
    """Return TEXT, compressed."""
    return PACKERS[name](TEXT)


def made(name: str) -> Unpacker:
    made = unpacker(name)
    assert made is not None
    return made


def inflate(raw: bytes, *, block: int = 64 << 10, size: int = MIB, name: str = "gzip") -> tuple[bytes, Corrupt | None]:
    """Return what comes out, and the fault that ends it."""
    gunzip, out = made(name), []
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
    gunzip = made("gzip")
    gunzip.give(gzip.compress(bytes(16 * MIB)))
    steps = []
    while not gunzip.needs_input():
        steps.append(len(gunzip.inflate(MIB)))
    gunzip.end()
    assert sum(steps) == 16 * MIB
    assert max(steps) == MIB


@pytest.mark.parametrize(("at", "flip", "size"), [(219, 1, 100), (219, 1, 1), (219, 1, 7)])
def test_a_fault_lies_at_one_byte(at: int, flip: int, size: int) -> None:
    """It was one byte further on where a step ended within the bits of the byte that shows it."""
    raw = bytearray(packed("gzip"))
    raw[at] ^= flip
    assert str(inflate(bytes(raw), block=500, size=size)[1]) == str(inflate(bytes(raw), size=len(TEXT) * 2)[1])


@settings(deadline=None, max_examples=50)
@given(st.data())
def test_what_comes_before_a_fault_does_not_depend_on_the_cut(data: st.DataObject) -> None:
    raw = bytearray(packed("gzip"))
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at] ^= data.draw(st.integers(1, 255))
    block, size = data.draw(st.integers(500, 100_000)), data.draw(st.integers(100, 100_000))
    out, fault = inflate(bytes(raw), block=block, size=size)
    whole, whole_fault = inflate(bytes(raw), block=len(raw), size=len(TEXT) * 2)
    assert out == whole
    assert str(fault) == str(whole_fault)


def test_a_wrong_checksum_is_found_after_all_data() -> None:
    raw = bytearray(packed("gzip"))
    raw[-8] ^= 1
    out, fault = inflate(bytes(raw))
    assert out == TEXT
    assert fault is not None
    assert fault.offset == len(raw) - 1 - 4
    assert str(fault) == f"the gzip data is corrupt (incorrect data check) at compressed byte {len(raw) - 5}"


@pytest.mark.parametrize("cut", [1, 9, 100, 1000, 10_000])
def test_truncated(cut: int) -> None:
    raw = packed("gzip")
    out, fault = inflate(raw[:-cut], size=1000)
    assert TEXT.startswith(out)
    assert out == zlib.decompressobj(31).decompress(raw[:-cut])
    assert fault is not None
    assert (fault.offset, fault.problem) == (len(raw) - cut, "the gzip data ends too early")


@pytest.mark.parametrize("garbage", [b"not gzip", b"\x1f", b"\0\0\0x"])
def test_garbage_after_the_last_member(garbage: bytes) -> None:
    raw = packed("gzip")
    out, fault = inflate(raw + garbage)
    assert out == TEXT
    assert fault is not None
    assert fault.offset >= len(raw)


def test_no_gzip_at_all() -> None:
    out, fault = inflate(TEXT)
    assert out == b""
    assert fault is not None
    assert "incorrect header check" in str(fault)


@pytest.mark.parametrize("name", PACKERS)
def test_nothing(name: str) -> None:
    assert inflate(b"", name=name) == (b"", None)


@pytest.mark.parametrize("name", PACKERS)
def test_it_is_known_by_its_content(name: str) -> None:
    for data in (b"", TEXT):
        assert detect(PACKERS[name](data)[:10]) == name


@pytest.mark.parametrize("head", [b"", b"\x1f", b"BZh9 is no magic", b"BZ", b"(\xb5/", b"\xfd7zXZ", b'{"id":1}'])
def test_what_is_not_compressed(head: bytes) -> None:
    assert detect(head[:10]) == "none"


@pytest.mark.parametrize("name", OTHERS)
@settings(deadline=None, max_examples=30)
@given(
    members=st.lists(st.binary(max_size=2000).map(lambda data: data * 3), max_size=6),
    block=st.integers(1, 3000),
    size=st.integers(1, 5000),
    padding=st.integers(0, 50),
)
def test_members_of_the_others(name: str, members: list[bytes], block: int, size: int, padding: int) -> None:
    raw = b"".join(map(PACKERS[name], members))
    raw += b"\0" * padding if members else b""
    assert inflate(raw, block=block, size=size, name=name) == (b"".join(members), None)


@pytest.mark.parametrize("name", OTHERS)
def test_a_large_member(name: str) -> None:
    data = random.Random(3).randbytes(MIB) + bytes(MIB) + TEXT
    assert inflate(PACKERS[name](data), size=100_000, name=name) == (data, None)


def test_frames_of_zstd_may_lie_between_others_that_hold_nothing() -> None:
    skipped = b"\x50\x2a\x4d\x18" + (5).to_bytes(4, "little") + b"hello"
    frame = zstandard.compress(TEXT)
    assert detect(skipped + frame) == "zstd"
    assert inflate(skipped + frame + skipped + frame, name="zstd") == (TEXT * 2, None)


@pytest.mark.parametrize("name", OTHERS)
def test_bombs_of_the_others_come_out_in_steps(name: str) -> None:
    bomb = made(name)
    bomb.give(PACKERS[name](bytes(16 * MIB)))
    steps = []
    while not bomb.needs_input():
        steps.append(len(bomb.inflate(MIB)))
    bomb.end()
    assert sum(steps) == 16 * MIB
    assert max(steps) == MIB


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("cut", [1, 9, 100, 1000])
def test_truncated_others(name: str, cut: int) -> None:
    raw = packed(name)
    out, fault = inflate(raw[:-cut], size=1000, name=name)
    assert TEXT.startswith(out)
    assert fault is not None
    assert str(fault) == f"the {name} data ends too early at compressed byte {len(raw) - cut}"


@pytest.mark.parametrize("name", OTHERS)
@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_what_comes_out_of_corrupt_others_does_not_depend_on_the_steps(name: str, data: st.DataObject) -> None:
    raw = bytearray(packed(name))
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at] ^= data.draw(st.integers(1, 255))
    out, fault = inflate(bytes(raw), size=data.draw(st.integers(100, 100_000)), name=name)
    whole, whole_fault = inflate(bytes(raw), size=len(TEXT) * 2, name=name)
    assert out == whole
    assert str(fault) == str(whole_fault)
    assert fault is not None or out == TEXT


@pytest.mark.parametrize("name", OTHERS)
def test_a_wrong_checksum_of_the_others(name: str) -> None:
    raw = bytearray(packed(name))
    raw[-4] ^= 1
    out, fault = inflate(bytes(raw), name=name)
    assert TEXT.startswith(out)
    assert fault is not None
    assert str(fault).startswith(f"the {name} data is corrupt (")


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("garbage", [b"not it", b"\0\0\0x"])
def test_garbage_after_the_last_member_of_the_others(name: str, garbage: bytes) -> None:
    raw = packed(name)
    out, fault = inflate(raw + garbage, name=name)
    assert out == TEXT
    assert fault is not None
    assert fault.offset >= len(raw)
