"""What is hashed of records is the same however their bytes were cut into blocks, blank lines and all."""

from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streambatch.codecs.formats import framing_for_format
from streambatch.core.chunks import Partition

LINES = st.lists(st.sampled_from([b"", b"\r", b"a", b"bc,d", b'"q\n\nr",s', b"x" * 40]), max_size=12)
CUTS = st.lists(st.integers(1, 200), max_size=6)


@pytest.mark.parametrize("format", ["jsonl", "csv"])
@given(lines=LINES, cuts=CUTS, ends=st.booleans())
def test_however_the_bytes_came(format: str, lines: list[bytes], cuts: list[int], ends: bool) -> None:
    data = b"head,er\n" + b"\n".join(lines) + (b"\n" if ends else b"")
    assert digest(format, data, cuts) == digest(format, data, [])


def digest(format: str, data: bytes, cuts: list[int]) -> str:
    framer = framing_for_format(format).framer(Partition("in", "a"), max_record_bytes=30)
    found, at = sha256(), 0
    for cut in [*sorted({each for each in cuts if each < len(data)}), len(data)]:
        for chunk in framer.feed(data[at:cut], 0.0):
            found.update(chunk.digestible())
        at = cut
    for chunk in framer.end(0.0):
        found.update(chunk.digestible())
    return found.hexdigest()
