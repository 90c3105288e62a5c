"""Dead letters as written, and the file they are in."""

import base64
import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streambatch.core.chunks import Partition
from streambatch.core.errors import ConfigError, HeldError, SinkError
from streambatch.core.outcomes import Reject
from streambatch.delivery.dead_letter_file import DeadLetterFile
from streambatch.delivery.dead_letters import DeadLetterOptions, encode_dead_letters
from streambatch.storage.segments import Rotation
from tests.moved_clock import MovedClock

AT = 1_700_000_000.1239


def reject(record: bytes, *, partition: str = "in/a.jsonl", truncated: bool = False) -> Reject:
    return Reject(
        3, Partition("rides", partition), 5120, "validate", "wrong_shape", "features: expected 10 numbers, found 9",
        record, truncated=truncated,
    )  # fmt: skip


def encoded(*rejects: Reject) -> list[dict[str, object]]:
    lines = encode_dead_letters(rejects, at=AT, pipeline="p", run="r-1").splitlines()
    return [json.loads(line) for line in lines]


def test_a_dead_letter_has_exactly_these_fields_in_this_order() -> None:
    line = encode_dead_letters([reject(b'{"id":1}')], at=AT, pipeline="p", run="r-1")
    assert line == (
        b'{"at":"2023-11-14T22:13:20.123Z","pipeline":"p","run":"r-1","stage":"validate","reason":"wrong_shape",'
        b'"error":"features: expected 10 numbers, found 9","source":"rides","partition":"in/a.jsonl","position":5120,'
        b'"record":"{\\"id\\":1}"}\n'
    )


def test_no_rejects_are_no_bytes() -> None:
    assert encode_dead_letters([], at=AT, pipeline="p", run="r") == b""


def test_a_whole_second_has_milliseconds_too() -> None:
    line = encode_dead_letters([reject(b"")], at=0, pipeline="p", run="r")
    assert json.loads(line)["at"] == "1970-01-01T00:00:00.000Z"


@given(st.lists(st.one_of(st.binary(max_size=100), st.text(max_size=100).map(lambda s: s.encode()))))
def test_a_record_comes_back_byte_for_byte(records: list[bytes]) -> None:
    letters = encoded(*map(reject, records))
    assert len(letters) == len(records)
    for letter, record in zip(letters, records, strict=True):
        if "record" in letter:
            assert str(letter["record"]).encode() == record
            assert "record_base64" not in letter
        else:
            assert base64.b64decode(str(letter["record_base64"])) == record


@pytest.mark.parametrize(
    ("record", "field"),
    [(b"", "record"), (b"a\nb\r\x00\x1f", "record"), ("\u2028é".encode(), "record"), (b"\xff", "record_base64"),
     (b"\xed\xa0\x80", "record_base64"), ("é".encode()[:1], "record_base64")],
)  # fmt: skip
def test_only_what_is_not_utf8_is_base64(record: bytes, field: str) -> None:
    [letter] = encoded(reject(record))
    assert {"record", "record_base64"} & set(letter) == {field}


def test_only_a_cut_record_says_so() -> None:
    whole, cut = encoded(reject(b"x"), reject(b"x" * 65536, truncated=True))
    assert "truncated" not in whole
    assert cut["truncated"] is True
    assert cut["record"] == "x" * 65536


def test_a_file_name_that_is_not_utf8_is_written_with_what_can_be() -> None:
    [letter] = encoded(reject(b"x", partition=os.fsdecode(b"caf\xe9-\xc3\xa9.jsonl")))
    assert letter["partition"] == "caf\\xe9-é.jsonl"


@pytest.mark.parametrize("stop_at", [-0.1, 1.1, float("nan")])
def test_a_share_is_from_0_to_1(stop_at: float) -> None:
    with pytest.raises(ConfigError, match="stop_at"):
        DeadLetterOptions(stop_at=stop_at)


class TestFile:
    pytestmark = pytest.mark.anyio

    @pytest.fixture
    def anyio_backend(self) -> str:
        return "asyncio"

    async def test_it_is_there_from_the_first_dead_letter_on(self, tmp_path: Path) -> None:
        path = tmp_path / "out" / "dead.jsonl"
        file = DeadLetterFile(path)
        await file.open()
        await file.write(b"")
        assert await file.sync() == 0
        assert list(path.parent.iterdir()) == []
        await file.write(b"{}\n")
        assert await file.sync() == 3
        await file.close()
        assert path.read_bytes() == b"{}\n"

    async def test_it_is_appended_to_from_a_line_of_its_own(self, tmp_path: Path) -> None:
        path = tmp_path / "dead.jsonl"
        path.write_bytes(b'{"at":"')
        file = DeadLetterFile(path)
        await file.open()
        await file.write(b"{}\n")
        await file.close()
        assert path.read_bytes() == b'{"at":"\n{}\n'

    async def test_another_owner_is_found_at_once_or_with_the_first_dead_letter(self, tmp_path: Path) -> None:
        path = tmp_path / "dead.jsonl"
        first, late, early = DeadLetterFile(path), DeadLetterFile(path), DeadLetterFile(path)
        await late.open()
        await first.write(b"{}\n")
        with pytest.raises(HeldError):
            await early.open()
        with pytest.raises(HeldError):
            await late.write(b"{}\n")
        await first.close()
        await late.write(b"{}\n")
        await late.close()
        assert path.read_bytes() == b"{}\n{}\n"

    async def test_a_folder_that_can_not_be_is_found_at_once(self, tmp_path: Path) -> None:
        (tmp_path / "a").touch()
        with pytest.raises(SinkError) as caught:
            await DeadLetterFile(tmp_path / "a" / "dead.jsonl").open()
        assert str(caught.value) == f"sink dead_letter: {tmp_path}/a: File exists"

    async def test_a_folder_that_can_not_be_written_is_found_at_once(self) -> None:
        with pytest.raises(SinkError, match="sink dead_letter: /proc/self: Permission denied"):
            await DeadLetterFile(Path("/proc/self/dead.jsonl")).open()

    async def test_a_full_disk_is_a_sink_error_and_can_be_tried_again(self) -> None:
        file = DeadLetterFile(Path("/dev/full"))
        await file.open()
        for _ in range(2):
            with pytest.raises(SinkError, match="sink dead_letter: /dev/full: No space left on device"):
                await file.write(b"{}\n")
        await file.close()

    async def test_they_rotate_as_a_sink_does_and_go_on_where_a_run_was_cut_off(self, tmp_path: Path) -> None:
        clock = MovedClock()
        for lines in ([b"1\n", b"22\n"], [b"3\n", b"44\n"]):
            file = DeadLetterFile(tmp_path / "dead.jsonl", Rotation(max_bytes=4, max_age=60), clock)
            await file.open()
            for line in lines:
                await file.write(line)
            await file.sync()
            await file.close()
        assert sorted(path.name for path in tmp_path.iterdir()) == [
            "dead-00000001.jsonl",
            "dead-00000002.jsonl",
            "dead-00000003.jsonl",
            "dead.jsonl.open",
        ]
        assert (tmp_path / "dead-00000002.jsonl").read_bytes() == b"22\n"
        file = DeadLetterFile(tmp_path / "dead.jsonl", Rotation(max_bytes=4, max_age=60), clock)
        await file.open()
        clock.now += 60
        await file.close_due()
        assert (tmp_path / "dead-00000004.jsonl").read_bytes() == b"44\n"
        await file.write(b"5\n")
        await file.finish()
        await file.close()
        assert (tmp_path / "dead-00000005.jsonl").read_bytes() == b"5\n"
        assert not (tmp_path / "dead.jsonl.open").exists()
