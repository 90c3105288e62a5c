"""What is taken out of texts before they are said."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streambatch.core.redaction import looks_secret, redacted

WORDS = st.text("abcdefgh0123456789", min_size=4, max_size=12)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("GET http://ann:pw@host/x: refused", "GET http://***@host/x: refused"),
        ("https://ann:p@ss@host/x: refused", "https://***@host/x: refused"),
        ("https://host/x?token=abc123&n=1: 401", "https://host/x?token=***&n=1: 401"),
        ("https://host/x?api_key=abc123", "https://host/x?api_key=***"),
        ("my_own-api_key=abc123, mytoken=abc123", "my_own-api_key=***, mytoken=abc123"),
        ("Authorization: Bearer abcd.efgh", "Authorization: Bearer ***"),
        ("{'authorization': 'Basic YWxhZGRpbg=='}", "{'authorization': 'Basic ***'}"),
        ('{"password": "hunter2", "id": 1}', '{"password": "***", "id": 1}'),
        ("connect host=db password='hunter2'", "connect host=db password='***'"),
        ("record at byte 12: expected 10 numbers, found 9", "record at byte 12: expected 10 numbers, found 9"),
        ("token: found 'x y'; allowed: visible characters", "token: found 'x y'; allowed: visible characters"),
    ],
)
def test_what_is_said_of_a_text(text: str, said: str) -> None:
    assert redacted(text) == said


@given(WORDS, WORDS, st.sampled_from(["token", "api_key", "client-secret", "password"]))
def test_no_secret_in_an_address_is_left(user: str, secret: str, name: str) -> None:
    said = redacted(f"POST https://{user}:{secret}ZZ@host:80/p?{name}={secret}ZZ&x=1 failed: Bearer {secret}ZZ")
    assert f"{secret}ZZ" not in said
    assert "host:80/p" in said


@pytest.mark.parametrize("text", ["a_" * 1000, "-a" * 1000, "http://" + "a" * 200_000, "token" + " " * 10_000])
def test_a_long_text_is_soon_gone_through(text: str) -> None:
    """Each of them once took a time that grew with the square of its length, or doubled with every underscore."""
    assert redacted(text) == text


def test_names_that_say_what_they_hold() -> None:
    assert all(map(looks_secret, ("token", "API_KEY", "db_password", "x-secret")))
    assert not any(map(looks_secret, ("keyboard", "tokens_per_second", "path")))
