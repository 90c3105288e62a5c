"""Retries and halves: who is called with what, how often, after which wait."""

from math import ceil, log2

from hypothesis import given
from hypothesis import strategies as st

from streambatch.core.errors import RetryableError
from streambatch.core.retry import RetryPolicy, TimedOutError
from streambatch.scoring.attempts import Trial

THRICE = RetryPolicy(attempts=3)


def trial_of(rows: int, policy: RetryPolicy = THRICE) -> Trial:
    return Trial(rows, policy, lambda: 1.0)


def test_a_passing_error_is_tried_again_whole_after_growing_waits() -> None:
    trial = trial_of(8)
    for wait in (0.1, 0.2):
        trial.started(0.0)
        trial.failed(RetryableError("away"), 0.0)
        assert (trial.span, trial.wait_seconds) == (slice(0, 8), wait)
    trial.succeeded(range(8))  # type: ignore[arg-type]  # a trial doesn't look at scores
    assert trial.span is None
    assert (list(trial.scores or ()), trial.bisection, trial.retries) == (list(range(8)), None, 2)


def test_one_that_does_not_pass_kills_all_rows_of_the_call_and_halves_nothing() -> None:
    for error, told in (
        (RetryableError("away"), "RetryableError: away"),
        (TimedOutError(30.0), "timed out after 30 s"),
    ):
        trial = trial_of(4)
        for _ in range(3):
            assert trial.span == slice(0, 4)
            trial.started(0.0)
            trial.failed(error, 0.0)
        assert trial.span is None
        assert trial.bisection is not None
        assert [(row, str(cause)) for row, cause in trial.bisection.guilty] == [
            (row, f"{told}, 3 attempts") for row in range(4)
        ]


def test_time_in_passing_failures_and_waits_is_kept_apart() -> None:
    trial = trial_of(2)
    trial.started(10.0)
    trial.failed(RetryableError(), 11.0)  # 1 s in the call, and 0.5 s until the next
    trial.started(11.5)
    trial.failed(ValueError("poison"), 14.0)  # scoring
    trial.started(14.0)
    trial.failed(TimedOutError(1.0), 15.0)
    trial.started(15.25)
    trial.succeeded([1])  # type: ignore[arg-type]
    assert trial.span == slice(1, 2)
    for _ in range(3):
        trial.started(20.0)
        trial.failed(RetryableError(), 21.0)
    assert trial.span is None
    assert trial.retry_seconds == (11.5 - 10.0) + (15.25 - 14.0) + (21.0 - 20.0)


KINDS = ("ok", "poison", "away", "hangs")


@given(
    rows=st.integers(1, 600),
    attempts=st.integers(1, 4),
    poison=st.sets(st.integers(0, 599), max_size=6),
    script=st.lists(st.sampled_from(KINDS), max_size=40),
)
def test_every_row_ends_once_and_no_row_is_tried_for_nothing(
    rows: int, attempts: int, poison: set[int], script: list[str]
) -> None:
    """By script calls fail in passing; those that don't fail on rows that hold poison."""
    poison &= set(range(rows))
    trial, calls, now = trial_of(rows, RetryPolicy(attempts=attempts)), 0, 0.0
    faults = iter(script)
    while (span := trial.span) is not None:
        now += trial.wait_seconds
        trial.started(now)
        now += 1.0
        kind, calls = next(faults, "ok"), calls + 1
        taken = range(rows)[span]
        if kind == "away":
            trial.failed(RetryableError(), now)
        elif kind == "hangs":
            trial.failed(TimedOutError(1.0), now)
        elif kind == "poison" and len(taken) > 1:
            trial.failed(ValueError("too many"), now)
        elif poison & set(taken):
            trial.failed(ValueError("poison"), now)
        else:
            trial.succeeded(taken)  # type: ignore[arg-type]
    if trial.bisection is None:
        assert list(trial.scores or ()) == list(range(rows))
        return
    scored = [row for _, _, taken in trial.bisection.results for row in taken]
    dead = [row for row, _ in trial.bisection.guilty]
    assert sorted(scored + dead) == list(range(rows))
    assert scored == sorted(scored)
    assert poison <= set(dead)
    assert trial.bisection.kept().tolist() == scored
    assert trial.retry_seconds <= now
    if not script:
        assert set(dead) == poison
        assert calls <= 1 + len(poison) * (2 * ceil(log2(rows)) if rows > 1 else 0)
