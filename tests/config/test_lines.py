"""Which line of a config a message names."""

import pytest

from streambatch.config.lines import line_of

TEXT = '''name = "rides"
source.live = { type = "tcp" }
[source.rides_in]
path = [
  "in/*.jsonl",
  "[batch]",
]
note = """
[batch]
max_records = 1
"""
[[preprocess]]
type = "clip"
[[preprocess]]
type = "standardize"
mean = [0.0]
[batch]
max_records = 10
"max_wait" = "5x"
workers.count = 2
'''


@pytest.mark.parametrize(
    ("key", "line"),
    [
        ("name", 1),
        ("source.live.listen", 2),
        ("source.rides_in", 3),
        ("source.rides_in.type", 3),
        ("source.rides_in.path[1]", 4),
        ("preprocess[0].low", 12),
        ("preprocess[1].mean", 16),
        ("batch.max_records", 18),
        ("batch.max_wait", 19),
        ("batch.workers.count", 20),
        ("model", None),
    ],
)
def test_the_line_of_a_key_or_of_its_table(key: str, line: int | None) -> None:
    assert line_of(TEXT, key) == line


@pytest.mark.parametrize("text", ["", "[", "= 1", "[[a", "a.b.c"])
def test_odd_texts_have_no_line(text: str) -> None:
    assert line_of(text, "a.b") is None
