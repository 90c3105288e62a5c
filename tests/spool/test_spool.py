"""Blocks and segments: what is written comes back, and of what is cut or damaged a part, never anything else."""

from itertools import accumulate
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streambatch.core.chunks import Fault
from streambatch.spool.blocks import HEADER_BYTES, scan_segment
from streambatch.spool.folder import SpoolFolder
from streambatch.spool.keys import KEYS_PER_FILE, SpoolKeys, hashed
from tests.spool.spooling import DAY, NOW, PARTITION, chunks_in, opened, records_in, request, stored_at

REQUESTS = [
    request([b"one", b"two"]),
    request([b"three"], [b"four"], [b"five"], key="k"),
    request([b"six"]),
    request([b"seven"], [b"eight"]),
]
RECORDS = [b"one", b"two", b"three", b"four", b"five", b"six", b"seven", b"eight"]
WHOLE = (0, 2, 5, 6, 8)
"""How many records there are after each request."""


def segment_of(path: Path, *, in_groups: bool = True) -> Path:
    """Write REQUESTS to one segment, each with an fsync of its own or all with one."""
    folder = opened(path)
    if in_groups:
        for one in REQUESTS:
            folder.append([one])
    else:
        folder.append(REQUESTS)
    folder.close()
    (segment,) = path.glob("*.seg")
    return segment


def test_records_come_back_in_order_with_their_positions(tmp_path: Path) -> None:
    segment_of(tmp_path)
    folder = opened(tmp_path)
    chunks = chunks_in(folder)
    positions = [chunk.position_of(at) for chunk in chunks for at in range(chunk.count)]
    assert {chunk.partition for chunk in chunks} == {PARTITION}
    assert positions == list(accumulate(len(record) + 1 for record in RECORDS))
    for acked, left in zip(positions, range(1, 9), strict=True):
        assert records_in(folder, after=acked) == RECORDS[left:]
    folder.close()


def test_what_is_known_of_records_comes_back(tmp_path: Path) -> None:
    folder = opened(tmp_path)
    fault = Fault("oversize", "a record of 9 MiB", truncated=True)
    folder.append([request([b"1,2"], columns=("a", "b")), request([b"xxx"], fault=fault), request([b"3,4"])])
    chunks = chunks_in(folder)
    assert [(chunk.columns, chunk.fault) for chunk in chunks] == [(("a", "b"), None), (None, fault), (None, None)]
    assert [bytes(chunk.data()) for chunk in chunks] == [b"1,2\n", b"xxx\n", b"3,4\n"]
    folder.close()


@settings(max_examples=200, deadline=None)
@given(data=st.data(), in_groups=st.booleans())
def test_a_cut_segment_holds_whole_requests(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, in_groups: bool
) -> None:
    path = tmp_path_factory.mktemp("spool")
    segment = segment_of(path, in_groups=in_groups)
    content = segment.read_bytes()
    segment.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    found = stored_at(path)
    assert found == RECORDS[: len(found)]
    assert len(found) in WHOLE
    assert stored_at(path) == found
    assert list(path.glob("*.corrupt")) == []


@settings(max_examples=200, deadline=None)
@given(data=st.data(), in_groups=st.booleans())
def test_damage_costs_what_comes_after_it_in_the_segment(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, in_groups: bool
) -> None:
    path = tmp_path_factory.mktemp("spool")
    segment = segment_of(path, in_groups=in_groups)
    folder = opened(path)
    folder.append([request([b"next"])])
    folder.close()
    content = bytearray(segment.read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    content[at] ^= data.draw(st.integers(1, 255))
    segment.write_bytes(content)
    found = stored_at(path)
    assert found[-1] == b"next"
    assert found[:-1] == RECORDS[: len(found) - 1]
    assert len(found) - 1 in WHOLE[:-1]
    assert [each.name for each in path.glob("*.corrupt")] == [segment.name + ".corrupt"]
    assert stored_at(path) == found


def test_a_torn_end_is_told_from_damage(tmp_path: Path) -> None:
    """Both look alike to a checksum; a later group says that what was before it had been durable."""
    length = len(segment_of(tmp_path / "a").read_bytes())
    for in_groups in (True, False):
        path = tmp_path / f"groups-{in_groups}"
        segment = segment_of(path, in_groups=in_groups)
        content = bytearray(segment.read_bytes())
        assert len(content) == length
        content[HEADER_BYTES + 2] ^= 1
        segment.write_bytes(content)
        assert stored_at(path) == []
        assert bool(list(path.glob("*.corrupt"))) is in_groups


def test_an_end_that_a_checkpoint_knows_of_is_damaged_and_not_torn(tmp_path: Path) -> None:
    segment = segment_of(tmp_path)
    segment.write_bytes(segment.read_bytes()[:-1])
    folder = opened(tmp_path, acked=4, known_to=sum(len(record) + 1 for record in RECORDS))
    assert records_in(folder, after=4) == RECORDS[1:6]
    assert folder.corrupt == 1
    folder.append([request([b"more"])])
    assert records_in(folder, after=4) == [*RECORDS[1:6], b"more"]
    folder.close()


def test_a_spool_that_is_gone_counts_as_damaged_and_positions_go_on(tmp_path: Path) -> None:
    folder = opened(tmp_path, acked=100, known_to=200)
    assert (folder.corrupt, folder.position) == (1, 200)
    folder.append([request([b"a"])])
    assert [chunk.position for chunk in chunks_in(folder, after=100)] == [202]
    folder.close()


def test_a_segment_begun_by_a_killed_process_takes_nothing_along(tmp_path: Path) -> None:
    """Its torn beginning is removed at the next start; the segment that then has its name stays when that is acked."""
    earlier = opened(tmp_path)
    earlier.append([REQUESTS[0]])
    end = earlier.position
    earlier.close()
    (tmp_path / f"{end:020}.seg").write_bytes(b"torn")
    folder = opened(tmp_path)
    folder.append([REQUESTS[2]])
    folder.remove(end, NOW)
    folder.close()
    assert stored_at(tmp_path, acked=end) == [b"six"]


def test_what_is_acked_is_removed_and_no_more(tmp_path: Path) -> None:
    folder = opened(tmp_path, segment_bytes=1)
    for at in range(4):
        folder.append([request([b"%d" % at])])
    for acked, left in ((1, 4), (2, 3), (7, 1)):
        folder.remove(acked, NOW)
        assert len(list(tmp_path.glob("*.seg"))) == left
    assert records_in(folder) == [b"3"]
    folder.close()
    assert stored_at(tmp_path, acked=8) == []


def test_what_only_keys_follow_is_removed_once_its_records_are_acked(tmp_path: Path) -> None:
    """Whoever was about to read of it reads past it."""
    folder = opened(tmp_path, segment_bytes=1)
    folder.append([request([b"a"])])
    for key in ("k", "l"):
        folder.append([request(key=key)])
    folder.append([request([b"b"], key="m")])
    folder.remove(1, NOW)
    assert len(folder.segments) == 4
    doomed = folder.segments[1]
    folder.remove(2, NOW)
    assert [segment.first for segment in folder.segments] == [4]
    data, heads = folder.read(doomed, 0, doomed.length, 64)
    assert (len(data), heads[-1].records, heads[-1].end, heads[-1].next_offset) == (0, 0, doomed.end, doomed.length)
    folder.close()
    assert stored_at(tmp_path, acked=2, known_to=6) == [b"b"]


def test_a_spool_of_keys_alone_is_emptied_and_opened_again(tmp_path: Path) -> None:
    folder = opened(tmp_path)
    folder.append([request([b"a"], key="k"), request(key="l")])
    assert not folder.is_done(1)
    assert folder.is_done(2)
    folder.roll()
    folder.remove(2, NOW)
    folder.close()
    assert list(tmp_path.glob("*.seg")) == []
    keys = SpoolKeys(tmp_path, DAY)
    again = SpoolFolder(tmp_path, 1 << 20, keys)
    again.open(2, 2)
    assert (again.size, again.corrupt) == (0, 0)
    assert all(keys.find(hashed(key), NOW) for key in "kl")
    again.append([request([b"b"])])
    assert records_in(again, after=2) == [b"b"]
    again.close()


@pytest.mark.parametrize("is_removed", [False, True])
def test_keys_are_known_after_a_restart_also_without_their_segments(tmp_path: Path, is_removed: bool) -> None:
    folder = opened(tmp_path, segment_bytes=1)
    folder.append([request([b"a", b"b"], key="first")])
    folder.append([request(key="empty")])
    folder.append([request([b"c"])])
    if is_removed:
        folder.remove(folder.position - 2, NOW)
        assert len(list(tmp_path.glob("*.seg"))) == 1
    folder.close()
    keys = SpoolKeys(tmp_path, DAY)
    SpoolFolder(tmp_path, 1 << 20, keys).open(0, 0)
    found = keys.find(hashed("first"), NOW + 1)
    assert found is not None
    assert found.received == 2
    assert keys.find(hashed("empty"), NOW + DAY - 1) is not None
    assert keys.find(hashed("first"), NOW + DAY + 1) is None
    assert keys.find(hashed("other"), NOW) is None


def test_old_key_files_go(tmp_path: Path) -> None:
    keys = SpoolKeys(tmp_path, DAY)
    key = request(key="k").key
    assert key is not None
    for day in range(4):
        now = NOW + day * DAY
        keys.save([(now, key)] * KEYS_PER_FILE, now)
        assert len(list(tmp_path.glob("*.keys"))) <= 2


def test_a_damaged_key_file_costs_the_damaged_key_alone(tmp_path: Path) -> None:
    keys = SpoolKeys(tmp_path, DAY)
    stored = [request(key=name).key for name in "abc"]
    keys.save([(NOW, key) for key in stored if key is not None], NOW)
    (path,) = tmp_path.glob("*.keys")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content + b"torn")
    again = SpoolKeys(tmp_path, DAY)
    again.load()
    assert [again.find(hashed(name), NOW) is not None for name in "abc"] == [True, False, True]


def test_records_that_look_like_blocks_are_taken_for_none(tmp_path: Path) -> None:
    inner = segment_of(tmp_path / "inner").read_bytes().replace(b"\n", b" ")
    folder = opened(tmp_path / "outer")
    folder.append([request([inner * 20])])
    folder.append([request([b"last"])])
    folder.close()
    (segment,) = (tmp_path / "outer").glob("*.seg")
    segment.write_bytes(segment.read_bytes()[:-1])
    assert stored_at(tmp_path / "outer") == [inner * 20]
    assert list((tmp_path / "outer").glob("*.corrupt")) == []


def test_an_empty_segment_holds_nothing() -> None:
    found = scan_segment(memoryview(b""), 5, acked=0, known_to=0, ends_at=None)
    assert (found.length, found.end, found.records) == (0, 5, (0, 0))
    assert not found.is_torn
