"""Halving finds exactly the guilty rows, within the promised number of calls."""

from math import ceil, log2

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from streambatch.core.bisect import isolate


@given(rows=st.integers(1, 600), data=st.data())
def test_finds_exactly_the_guilty_rows(rows: int, data: st.DataObject) -> None:
    guilty = set(data.draw(st.lists(st.integers(0, rows - 1), min_size=1, max_size=5)))
    calls = 0

    def call(span: slice) -> range:
        nonlocal calls
        calls += 1
        taken = range(rows)[span]
        if guilty & set(taken):
            raise ValueError("poison")
        return taken

    bisection = isolate(call, rows, ValueError("poison"))

    assert {row for row, _ in bisection.guilty} == guilty
    assert [row for _, _, taken in bisection.results for row in taken] == sorted(set(range(rows)) - guilty)
    assert np.array_equal(bisection.kept(), sorted(set(range(rows)) - guilty))
    if len(guilty) == 1:
        assert calls <= 2 * ceil(log2(rows)) + 1 if rows > 1 else calls == 0


def test_one_poison_in_512_costs_at_most_19_calls() -> None:
    for poison in range(512):
        calls = 0

        def call(span: slice, poison: int = poison) -> None:
            nonlocal calls
            calls += 1
            if poison in range(512)[span]:
                raise ValueError

        isolate(call, 512, ValueError())
        assert calls <= 19
