"""Retries and halves: who is called with what, how often, after which wait."""

from math import ceil, log2

from hypothesis import given
from hypothesis import strategies as st

from streambatch.core.errors import RetryableError
from streambatch.core.retry import RetryPolicy, TimedOutError
from streambatch.scoring.attempts import Attempts

THRICE = RetryPolicy(attempts=3)


def attempts_of(rows: int, policy: RetryPolicy = THRICE) -> Attempts:
    return Attempts(rows, policy, lambda: 1.0)


def test_a_passing_error_is_tried_again_whole_after_growing_waits() -> None:
    attempts = attempts_of(8)
    for wait in (0.1, 0.2):
        attempts.started(0.0)
        attempts.failed(RetryableError("away"), 0.0)
        assert (attempts.span, attempts.wait_seconds) == (slice(0, 8), wait)
    attempts.succeeded(range(8))  # type: ignore[arg-type]  # a attempts doesn't look at scores
    assert attempts.span is None
    assert (list(attempts.scores or ()), attempts.bisection, attempts.retries) == (list(range(8)), None, 2)


def test_one_that_does_not_pass_kills_all_rows_of_the_call_and_halves_nothing() -> None:
    for error, told in (
        (RetryableError("away"), "RetryableError: away"),
        (TimedOutError(30.0), "timed out after 30 s"),
    ):
        attempts = attempts_of(4)
        for _ in range(3):
            assert attempts.span == slice(0, 4)
            attempts.started(0.0)
            attempts.failed(error, 0.0)
        assert attempts.span is None
        assert attempts.bisection is not None
        assert [(row, str(cause)) for row, cause in attempts.bisection.guilty] == [
            (row, f"{told}, 3 attempts") for row in range(4)
        ]


def test_time_in_passing_failures_and_waits_is_kept_apart() -> None:
    attempts = attempts_of(2)
    attempts.started(10.0)
    attempts.failed(RetryableError(), 11.0)  # 1 s in the call, and 0.5 s until the next
    attempts.started(11.5)
    attempts.failed(ValueError("poison"), 14.0)  # scoring
    attempts.started(14.0)
    attempts.failed(TimedOutError(1.0), 15.0)
    attempts.started(15.25)
    attempts.succeeded([1])  # type: ignore[arg-type]
    assert attempts.span == slice(1, 2)
    for _ in range(3):
        attempts.started(20.0)
        attempts.failed(RetryableError(), 21.0)
    assert attempts.span is None
    assert attempts.retry_seconds == (11.5 - 10.0) + (15.25 - 14.0) + (21.0 - 20.0)


KINDS = ("ok", "poison", "away", "hangs")


@given(
    rows=st.integers(1, 600),
    tries=st.integers(1, 4),
    poison=st.sets(st.integers(0, 599), max_size=6),
    script=st.lists(st.sampled_from(KINDS), max_size=40),
)
def test_every_row_ends_once_and_no_row_is_tried_for_nothing(
    rows: int, tries: int, poison: set[int], script: list[str]
) -> None:
    """By script calls fail in passing; those that don't fail on rows that hold poison."""
    poison &= set(range(rows))
    attempts, calls, now = attempts_of(rows, RetryPolicy(attempts=tries)), 0, 0.0
    faults = iter(script)
    while (span := attempts.span) is not None:
        now += attempts.wait_seconds
        attempts.started(now)
        now += 1.0
        kind, calls = next(faults, "ok"), calls + 1
        taken = range(rows)[span]
        if kind == "away":
            attempts.failed(RetryableError(), now)
        elif kind == "hangs":
            attempts.failed(TimedOutError(1.0), now)
        elif kind == "poison" and len(taken) > 1:
            attempts.failed(ValueError("too many"), now)
        elif poison & set(taken):
            attempts.failed(ValueError("poison"), now)
        else:
            attempts.succeeded(taken)  # type: ignore[arg-type]
    if attempts.bisection is None:
        assert list(attempts.scores or ()) == list(range(rows))
        return
    scored = [row for _, _, taken in attempts.bisection.results for row in taken]
    dead = [row for row, _ in attempts.bisection.guilty]
    assert sorted(scored + dead) == list(range(rows))
    assert scored == sorted(scored)
    assert poison <= set(dead)
    assert attempts.bisection.kept().tolist() == scored
    assert attempts.retry_seconds <= now
    if not script:
        assert set(dead) == poison
        assert calls <= 1 + len(poison) * (2 * ceil(log2(rows)) if rows > 1 else 0)
