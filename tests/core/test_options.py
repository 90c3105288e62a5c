"""What is said of wrong options: the key, what was found, what is allowed."""

from collections.abc import Callable
from dataclasses import field
from typing import Annotated, Literal

import pytest
from pydantic import Field

from streambatch.core.errors import ConfigError, OptionError
from streambatch.core.options import options


@options
class Inner:
    count: int


@options
class Sample:
    path: str
    shape: tuple[int, ...] = ()
    both: str | list[str] = ""
    share: Annotated[float, Field(ge=0, le=1)] = 0.5
    is_on: bool = False
    kind: Literal["a", "b"] = "a"
    names: dict[str, str] = field(default_factory=dict)
    inner: Inner | None = None

    def __post_init__(self) -> None:
        if self.path == "bad":
            raise OptionError("path", "'bad'", "anything else")


@options
class Required:
    text: str
    either: str | list[str] | None
    kind: Literal["a", "b"]
    flag: bool
    number: float
    other: Callable[[], None]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"shape": 0}, "shape: found 0; allowed: a list"),
        ({"shape": [1, "b"]}, "shape.1: found 'b'; allowed: an integer"),
        ({"both": 3}, "both: found 3; allowed: a string or a list"),
        ({"both": b"\xff"}, r"both: found b'\xff'; allowed: a string in UTF-8 or a list"),
        ({"share": 2}, "share: found 2; allowed: at most 1.0"),
        ({"share": float("nan")}, "share: found nan; allowed: a finite number"),
        ({"is_on": "maybe"}, "is_on: found 'maybe'; allowed: true or false"),
        ({"kind": "c"}, "kind: found 'c'; allowed: 'a' or 'b'"),
        ({"names": []}, "names: found []; allowed: a table"),
        ({"inner": {}}, "inner.count: found nothing; allowed: a value (required)"),
        ({"pat": "x"}, "pat: found 'x'; allowed: no such key"),
        ({"path": "bad"}, "path: found 'bad'; allowed: anything else"),
    ],
)
def test_what_is_said(given: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Sample(**{"path": "x", **given})  # type: ignore[arg-type]  # what is wrong is the test
    assert said in [str(problem) for problem in caught.value.problems]


def test_a_missing_key_is_told_with_what_it_holds() -> None:
    with pytest.raises(ConfigError) as caught:
        Required()  # type: ignore[call-arg]  # what is missing is the test
    assert [str(problem) for problem in caught.value.problems] == [
        "text: found nothing; allowed: a string (required)",
        "either: found nothing; allowed: a string or a list (required)",
        "kind: found nothing; allowed: 'a' or 'b' (required)",
        "flag: found nothing; allowed: true or false (required)",
        "number: found nothing; allowed: a number (required)",
        "other: found nothing; allowed: a value (required)",
    ]


def test_an_argument_by_position_has_its_name() -> None:
    with pytest.raises(ConfigError, match=r"^Sample: path: found 3; allowed: a string$"):
        Sample(3)  # type: ignore[arg-type]  # what is wrong is the test
