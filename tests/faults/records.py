"""The records of these tests: numbered, and told from their number alone.

A record's id is `<stream>:<number>`. Whoever sends a stream numbers its records from 0 without gaps, and one after the
other, so that how many each stream has is all there is to know of what went in.
"""

POISON = 97, 13
"""Of so many records of a stream the one with this remainder can't be scored."""
CONFIG = """
[record]
id = "id"
features = "x"
shape = [2]
[model]
type = "linear"
path = "model.npz"
"""


def line(stream: str, number: int) -> bytes:
    """Return a record as it is sent."""
    x = '"bad"' if is_poison(number) else f"[{number % 1000}, {len(stream)}]"
    return f'{{"id": "{stream}:{number}", "x": {x}}}\n'.encode()


def lines(stream: str, start: int, end: int) -> bytes:
    """Return the records of a stream from number `start` to before `end`."""
    return b"".join(line(stream, number) for number in range(start, end))


def is_poison(number: int) -> bool:
    """Tell whether a record is one that becomes a dead letter."""
    return number % POISON[0] == POISON[1]


def score_of(stream: str, number: int) -> float:
    """Return what the model of the tests, weights of one, makes of a record."""
    return float(number % 1000 + len(stream))
