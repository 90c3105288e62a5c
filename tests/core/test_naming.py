"""Sources of a pipeline never share a name, whatever they were called."""

from hypothesis import given
from hypothesis import strategies as st

import streambatch as sb
from streambatch.core.naming import distinctly_named

NAMES = st.lists(st.sampled_from(["file", "file_2", "file_3", "file_2_2", "tcp"]), max_size=8)


def named(names: list[str]) -> list[str]:
    return [source.name for source in distinctly_named([sb.FileSource("in.jsonl", name=name) for name in names])]


def test_the_second_of_a_name_gets_a_number() -> None:
    assert named(["file", "tcp", "file", "file"]) == ["file", "tcp", "file_2", "file_3"]


@given(NAMES)
def test_each_has_a_name_of_its_own_and_the_first_keeps_it(names: list[str]) -> None:
    found = named(names)
    assert len(set(found)) == len(names)
    for name in set(names):
        assert found[names.index(name)] == name
