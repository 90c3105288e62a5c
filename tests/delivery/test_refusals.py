"""Which rows of a payload are refused: all of them are found, the others are accepted once, in order."""

from math import ceil, log2

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streambatch.core.errors import SinkRefused
from streambatch.delivery.refusals import Refusals, ends_of_lines

REFUSED = SinkRefused("http", "answered 422", status=422, reason="no")


def halved(rows: list[bytes], bad: set[int]) -> tuple[list[bytes], list[int], list[str]]:
    """Return what a server that refuses bad rows took, the rows that are guilty, and the ids of all parts."""
    refusals = Refusals(b"".join(rows), "run-7", REFUSED)
    taken, ids = [], []
    while (part := refusals.next_part()) is not None:
        ids.append(part.id)
        assert part.payload == b"".join(rows[part.start : part.stop])
        if bad & set(range(part.start, part.stop)):
            refusals.refused(REFUSED)
        else:
            taken += rows[part.start : part.stop]
    return taken, [row for row, _ in refusals.guilty], ids


@given(
    st.lists(st.binary(max_size=5).map(lambda raw: raw.replace(b"\n", b"") + b"\n"), min_size=1, max_size=40), st.data()
)
def test_the_guilty_are_found_and_the_others_taken_in_order(rows: list[bytes], data: st.DataObject) -> None:
    bad = data.draw(st.sets(st.integers(0, len(rows) - 1), min_size=1))
    taken, guilty, ids = halved(rows, bad)
    assert guilty == sorted(bad)
    assert taken == [row for at, row in enumerate(rows) if at not in bad]
    assert len(set(ids)) == len(ids)
    assert ids == halved(rows, bad)[2]
    if len(bad) == 1:
        assert len(ids) <= 2 * ceil(log2(len(rows)))


def test_one_row_alone_is_guilty_without_another_try() -> None:
    assert halved([b"1\n"], {0}) == ([], [0], [])


def test_parts_have_ids_of_their_own() -> None:
    assert halved([b"0\n", b"1\n", b"2\n"], {2})[2] == ["run-7.0-1", "run-7.1-3", "run-7.1-2", "run-7.2-3"]


@pytest.mark.parametrize(
    ("payload", "ends"), [(b"", []), (b"\n", [1]), (b"ab\nc\n", [3, 5]), (b"ab\nc", [3, 4]), (b"a", [1])]
)
def test_ends_of_lines(payload: bytes, ends: list[int]) -> None:
    assert ends_of_lines(payload).tolist() == ends
