"""Columns that are lists or arrays: narrowed, joined and read alike."""

import subprocess
import sys
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pytest

from streambatch.codecs.columns import concatenated, is_arrow, item, take, values

MASK = np.array([True, False, True])


@pytest.mark.parametrize("column", [[1, 2, 3], pa.array([1, 2, 3]), pa.array([0, 1, 2, 3])[1:]])
def test_both_kinds_do_the_same(column: Any) -> None:
    kept = take(column, MASK)
    assert is_arrow(kept) == is_arrow(column)
    assert list(values(kept)) == [1, 3]
    assert item(column, 1) == 2
    assert list(values(concatenated([column, kept]))) == [1, 2, 3, 1, 3]
    assert list(values(concatenated([column]))) == [1, 2, 3]


def test_arrays_of_one_type_stay_an_array_and_others_become_a_list() -> None:
    assert is_arrow(concatenated([pa.array([1]), pa.array([2])]))
    assert concatenated([pa.array([1]), pa.array(["a"])]) == [1, "a"]
    assert concatenated([["a"], pa.array([1, None])]) == ["a", 1, None]


def test_dictionaries_of_two_arrays_become_one() -> None:
    joined = concatenated([pa.array(["a", "b"]).dictionary_encode(), pa.array(["c", "a"]).dictionary_encode()])
    assert values(joined) == ["a", "b", "c", "a"]


@pytest.mark.parametrize(
    ("column", "found"),
    [
        (pa.array([1, None], pa.timestamp("ns")), '["1970-01-01T00:00:00.000000001",null]'),
        (pa.array([1], pa.timestamp("ns", "Europe/Berlin")), '["1970-01-01T00:00:00.000000001Z"]'),
        (pa.array([datetime(2014, 7, 1)], pa.timestamp("s")), '["2014-07-01T00:00:00"]'),
        (pa.array([1 << 60, None], pa.timestamp("s")), None),
        (pa.array([1500], pa.time64("ns")), '["00:00:00.000001"]'),
        (pa.array([1500], pa.duration("ns")), '["PT0.000001S"]'),
        (pa.array([timedelta(seconds=2)]), '["PT2S"]'),
        (pa.array([[1]], pa.list_(pa.timestamp("ns"))), None),
        (pa.array([Decimal("1.50")]), '["1.50"]'),
        (pa.array([b"\xff"]), '["/w=="]'),
        (pa.array([{"a": [1, None]}]), '[{"a":[1,null]}]'),
        (pa.array([float("nan"), 1.5]), "[null,1.5]"),
        (pa.array(["a", None, "a"]).dictionary_encode(), '["a",null,"a"]'),
        (pa.array(["a"], pa.large_string()), '["a"]'),
        (pa.nulls(2), "[null,null]"),
    ],
    ids=lambda each: str(each.type) if isinstance(each, pa.Array) else "",
)
def test_every_value_has_a_form_in_json(column: Any, found: str | None) -> None:
    plain = values(column)
    assert len(plain) == len(column)
    encoded = msgspec.json.encode(plain).decode()
    if found is not None:
        assert encoded == found


def test_pyarrow_is_not_loaded_for_lists() -> None:
    program = (
        "import sys, numpy as np; from streambatch.codecs.columns import *; import streambatch;"
        "concatenated([take([1], np.array([True])), [2]]); sys.exit('pyarrow' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False, timeout=60).returncode == 0
