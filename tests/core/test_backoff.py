"""Waits between tries: they grow up to a bound, are spread out, and grant what the other side asks for."""

from hypothesis import given
from hypothesis import strategies as st

from streambatch.core.backoff import ASKED_SECONDS_MAX, FIRST_SECONDS, LONGEST_SECONDS, Backoff


def test_the_bound_doubles_with_each_failure_in_a_row() -> None:
    backoff = Backoff(lambda: 1.0)
    assert [round(backoff.failed(), 6) for _ in range(10)] == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 30.0]
    for _ in range(10_000):
        assert backoff.failed() == LONGEST_SECONDS


def test_after_a_success_the_next_failure_is_the_first() -> None:
    backoff = Backoff(lambda: 1.0)
    for _ in range(5):
        backoff.failed()
    backoff.succeeded()
    assert backoff.failed() == FIRST_SECONDS


def test_who_asks_for_time_gets_it_up_to_a_limit() -> None:
    assert Backoff(lambda: 0.0).failed(17.0) == 17.0
    assert Backoff(lambda: 1.0).failed(17.0) == 17.0 + FIRST_SECONDS
    assert Backoff(lambda: 0.0).failed(1e9) == ASKED_SECONDS_MAX
    assert Backoff(lambda: 0.0).failed(-5.0) == 0.0


@given(
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.none() | st.floats(-10, 1e12)), max_size=40),
)
def test_a_wait_is_within_its_bounds_whatever_is_drawn_and_asked(failures: list[tuple[float, float | None]]) -> None:
    draws = iter([drawn for drawn, _ in failures])
    backoff = Backoff(lambda: next(draws))
    for number, (_, asked) in enumerate(failures):
        least = min(max(0.0, asked or 0.0), ASKED_SECONDS_MAX)
        wait = backoff.failed(asked)
        assert least <= wait <= least + min(FIRST_SECONDS * 2**number, LONGEST_SECONDS)
