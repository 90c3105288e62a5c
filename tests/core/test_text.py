"""Texts as they are shown."""

import os
from datetime import date

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streambatch.connectors.files.partitions import partition_name
from streambatch.core.text import encodable, repr_encodable, shortened, toml_text


@given(st.text())
def test_what_can_be_encoded_stays_as_it_is(text: str) -> None:
    assert encodable(text) == text


@given(st.text(st.characters(codec=None)))
def test_any_text_can_be_encoded(text: str) -> None:
    encodable(text).encode()


@given(st.binary(min_size=1).filter(lambda name: 0 not in name))
def test_a_file_has_the_name_of_its_partition(name: bytes) -> None:
    assert encodable(os.fsdecode(name)) == partition_name(os.fsdecode(name))


@pytest.mark.parametrize(
    ("text", "shown"),
    [("caf\udce9", r"'caf\xe9'"), ("\\\udce9", r"'\\\xe9'"), (r"\udce9", r"'\\udce9'"), ("\ud800", r"'\ud800'")],
)
def test_bytes_are_the_same_in_what_repr_writes(text: str, shown: str) -> None:
    assert repr_encodable(repr(text)) == shown


@given(st.text())
def test_what_repr_writes_of_other_texts_stays_as_it_is(text: str) -> None:
    assert repr_encodable(repr(text)) == repr(text)


@given(st.text(), st.integers(3, 20))
def test_a_text_is_no_longer_than_wanted(text: str, characters: int) -> None:
    short = shortened(text, characters)
    assert len(short) <= characters
    assert short == text if len(text) <= characters else text.startswith(short.removesuffix("..."))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (True, "true"),
        ("a b", "'a b'"),
        (1.5, "1.5"),
        (None, "nothing"),
        ({}, "{}"),
        ({"low": 0, "keep": [False, "x"]}, "{ low = 0, keep = [false, 'x'] }"),
        (date(2026, 1, 2), "2026-01-02"),
    ],
)
def test_values_are_shown_as_a_config_holds_them(value: object, text: str) -> None:
    assert toml_text(value) == text
