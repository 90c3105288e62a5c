"""Segments: how they are called, when one is due, what is renamed when, on a clock that only a test moves."""

from pathlib import Path

import pytest

from streambatch.core.errors import ConfigError, HeldError, SinkError
from streambatch.storage.segments import Rotation, SegmentedFile, SegmentNames
from tests.moved_clock import MovedClock

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    ("path", "closed"),
    [
        ("out/scores.jsonl", "out/scores-00000001.jsonl"),
        ("scores.v2.csv", "scores.v2-00000001.csv"),
        ("scores.jsonl.gz", "scores-00000001.jsonl.gz"),
        ("scores.zst", "scores-00000001.zst"),
        ("scores", "scores-00000001"),
        (".scores", ".scores-00000001"),
        ("a[1]+.jsonl", "a[1]+-00000001.jsonl"),
    ],
)
def test_names(path: str, closed: str) -> None:
    called = SegmentNames(Path(path))
    assert called.closed(1) == Path(closed)
    assert called.open == Path(f"{path}.open")


def test_only_segments_are_found_in_order_of_their_numbers(tmp_path: Path) -> None:
    for name in (
        "s-100000000.jsonl",
        "s-00000002.jsonl",
        "s-2.jsonl",
        "s.jsonl",
        "xs-00000003.jsonl",
        "s-00000004.csv",
    ):
        (tmp_path / name).touch()
    found = SegmentNames(tmp_path / "s.jsonl").found()
    assert list(found) == [2, 100000000]
    assert SegmentNames(tmp_path / "nowhere" / "s.jsonl").found() == {}


def test_a_rotation_has_a_limit() -> None:
    with pytest.raises(ConfigError, match="neither max_bytes nor max_age"):
        Rotation()
    with pytest.raises(ConfigError, match="max_age: found 0; allowed: more than 0"):
        Rotation(max_age=0)


async def test_size_and_age_close_a_segment(tmp_path: Path) -> None:
    clock = MovedClock()
    file = SegmentedFile(tmp_path / "s.jsonl", "scores", Rotation(max_bytes=10, max_age=60), clock)
    assert await file.open() == {}
    clock.now += 100
    assert not file.is_due(100)  # nothing is in it
    await file.write(b"12345678\n")
    file.begin_record()
    assert not file.is_due(1)
    assert file.is_due(2)
    clock.now += 59.9
    assert not file.is_due()
    clock.now += 0.1
    assert file.is_due()
    await file.roll()
    assert not file.is_due(11)
    assert names(tmp_path) == ["s-00000001.jsonl", "s.jsonl.open"]
    assert await file.sync() == 9
    await file.finish()
    await file.close()
    assert names(tmp_path) == ["s-00000001.jsonl"]


async def test_numbers_go_on_and_a_hard_stop_leaves_the_open_one(tmp_path: Path) -> None:
    (tmp_path / "s-00000007.jsonl").write_bytes(b"old\n")
    file = SegmentedFile(tmp_path / "s.jsonl", "scores", Rotation(max_bytes=10), MovedClock())
    assert list(await file.open()) == [7]
    await file.write(b"a\n")
    file.begin_record()
    await file.roll()
    await file.write(b"b\n")
    file.begin_record()
    await file.close()
    assert names(tmp_path) == ["s-00000007.jsonl", "s-00000008.jsonl", "s.jsonl.open"]
    assert (tmp_path / "s.jsonl.open").read_bytes() == b"b\n"


async def test_a_name_that_was_taken_meanwhile_is_an_error_and_never_overwritten(tmp_path: Path) -> None:
    file = SegmentedFile(tmp_path / "s.jsonl", "scores", Rotation(max_bytes=10), MovedClock())
    await file.open()
    await file.write(b"mine\n")
    file.begin_record()
    taken = tmp_path / "s-00000001.jsonl"
    taken.write_bytes(b"theirs\n")
    with pytest.raises(SinkError, match=r"s-00000001.jsonl: File exists"):
        await file.roll()
    taken.unlink()
    await file.roll()
    assert taken.read_bytes() == b"mine\n"
    await file.close()
    assert names(tmp_path) == ["s-00000001.jsonl"]


async def test_a_segment_that_could_not_be_begun_is_begun_by_the_next_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = SegmentedFile(tmp_path / "s.jsonl", "scores", Rotation(max_bytes=10), MovedClock())
    await file.open()
    await file.write(b"one\n")
    file.begin_record()

    async def failing() -> None:
        raise SinkError("scores", "no room")

    with monkeypatch.context() as broken, pytest.raises(SinkError, match="no room"):
        broken.setattr(file, "begin", failing)
        await file.roll()
    await file.write(b"two\n")
    assert (tmp_path / "s-00000001.jsonl").read_bytes() == b"one\n"
    assert (tmp_path / "s.jsonl.open").read_bytes() == b"two\n"
    await file.close()


async def test_the_open_segment_has_one_owner(tmp_path: Path) -> None:
    one = SegmentedFile(tmp_path / "s.jsonl", "scores", Rotation(max_bytes=10), MovedClock())
    two = SegmentedFile(tmp_path / "s.jsonl", "scores", Rotation(max_bytes=10), MovedClock())
    await one.open()
    with pytest.raises(HeldError):
        await two.open()
    await one.write(b"x\n")
    one.begin_record()
    await one.roll()
    with pytest.raises(HeldError):
        await two.open()
    await one.close()
