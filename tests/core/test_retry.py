"""Waits between tries: they grow up to a bound, are spread out, and grant what the other side asks for."""

import random

from hypothesis import given
from hypothesis import strategies as st

from streambatch.core.retry import Backoff, RetryPolicy

FIRST_SECONDS, LONGEST_SECONDS, ASKED_SECONDS_MAX = 0.1, 30.0, 300.0
POLICY = RetryPolicy(first_seconds=FIRST_SECONDS, longest_seconds=LONGEST_SECONDS, asked_seconds_max=ASKED_SECONDS_MAX)


def test_the_bound_doubles_with_each_failure_in_a_row() -> None:
    backoff = Backoff(POLICY, lambda: 1.0)
    assert [round(backoff.failed(), 6) for _ in range(10)] == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 30.0]
    for _ in range(10_000):
        assert backoff.failed() == LONGEST_SECONDS


def test_after_a_success_the_next_failure_is_the_first() -> None:
    backoff = Backoff(POLICY, lambda: 1.0)
    for _ in range(5):
        backoff.failed()
    backoff.succeeded()
    assert backoff.failed() == FIRST_SECONDS


def test_who_asks_for_time_gets_it_up_to_a_limit() -> None:
    assert Backoff(POLICY, lambda: 0.0).failed(17.0) == 17.0
    assert Backoff(POLICY, lambda: 1.0).failed(17.0) == 17.0 + FIRST_SECONDS
    assert Backoff(POLICY, lambda: 0.0).failed(1e9) == ASKED_SECONDS_MAX
    assert Backoff(POLICY, lambda: 0.0).failed(-5.0) == 0.0


@given(
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.none() | st.floats(-10, 1e12)), max_size=40),
)
def test_a_wait_is_within_its_bounds_whatever_is_drawn_and_asked(failures: list[tuple[float, float | None]]) -> None:
    draws = iter([drawn for drawn, _ in failures])
    backoff = Backoff(POLICY, lambda: next(draws))
    for number, (_, asked) in enumerate(failures):
        least = min(max(0.0, asked or 0.0), ASKED_SECONDS_MAX)
        wait = backoff.failed(asked or 0.0)
        assert least <= wait <= least + min(FIRST_SECONDS * 2**number, LONGEST_SECONDS)


@given(failures=st.integers(1, 5000), seed=st.integers())
def test_waits_are_drawn_between_nothing_and_a_bound_that_doubles(failures: int, seed: int) -> None:
    policy = RetryPolicy(attempts=10_000, first_seconds=0.1, longest_seconds=10.0)
    bound = min(0.1 * 2.0 ** min(failures - 1, 100), 10.0)
    assert policy.wait_seconds(failures, lambda: 1.0) == bound
    assert policy.wait_seconds(failures, lambda: 0.0) == 0.0
    wait = policy.wait_seconds(failures, random.Random(seed).random)
    assert 0.0 <= wait <= bound


def test_attempts_count_the_first_call() -> None:
    assert RetryPolicy(attempts=1).is_used_up(1)
    assert not RetryPolicy(attempts=3).is_used_up(2)
    assert RetryPolicy(attempts=3).is_used_up(3)


def test_a_jitter_of_a_half_draws_the_upper_half_and_none_draws_nothing() -> None:
    half = RetryPolicy(longest_seconds=5.0, jitter=0.5)
    assert [half.wait_seconds(n, lambda: 1.0) for n in (1, 2, 3, 6, 7, 10_000)] == [0.1, 0.2, 0.4, 3.2, 5.0, 5.0]
    assert half.wait_seconds(1, lambda: 0.0) == 0.05
    none = RetryPolicy(longest_seconds=5.0, jitter=0.0)
    assert [none.wait_seconds(n, random.random) for n in (1, 2, 7)] == [0.1, 0.2, 5.0]
