"""What is said on stderr: one event a line, and never a flood of them."""

import json
import logging
import os
from collections.abc import Iterator

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from streambatch.core.batches import Batch, Stamps
from streambatch.core.chunks import Partition
from streambatch.core.outcomes import Outcome, Reject
from streambatch.observe.logs import (
    EVERY_SECONDS,
    LINES_MAX,
    LogFormat,
    LogObserver,
    LogOptions,
    RateLimit,
    configure_logs,
)


class Hands:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def wall(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Hands:
    return Hands()


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    handlers, level = logging.root.handlers[:], logging.root.level
    yield
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)
    structlog.reset_defaults()


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, object]]:
    out, err = capsys.readouterr()
    assert out == ""
    return [json.loads(line) for line in err.splitlines()]


def outcome(*reasons: str) -> Outcome:
    rejects = [
        Reject(at, Partition("in", "a.jsonl"), at * 10, "decode", reason, f"{reason} at {at}", b"x")  # type: ignore[arg-type]  # any text
        for at, reason in enumerate(reasons)
    ]
    return Outcome(b"", {}, rejects, {})


BATCH = Batch(0, [], 1, 1, "size", Stamps(0.0, 0.0))


@given(st.lists(st.tuples(st.sampled_from("ab"), st.floats(0, 5), st.integers(1, 9))))
def test_every_event_is_told_or_counted_in_the_next_told(events: list[tuple[str, float, int]]) -> None:
    limit, now = RateLimit(), 0.0
    came, told, lines = {"a": 0, "b": 0}, {"a": 0, "b": 0}, {"a": 0, "b": 0}
    for key, seconds, count in events:
        now += seconds
        came[key] += count
        passed = limit.admit(key, now, count)
        if passed is not None:
            told[key] += passed
            lines[key] += 1
            assert told[key] == came[key]
    assert max(lines.values()) <= LINES_MAX * (now // EVERY_SECONDS + 1)


@pytest.mark.parametrize("format", ["json", "text"])
def test_a_file_of_any_name_can_be_told_of(format: LogFormat, clock: Hands, capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs(is_terminal=False, options=LogOptions(format=format))
    path = os.fsdecode(b"a\xff.jsonl")
    observer = LogObserver(clock)
    observer.file_changed("in", path, "opened")
    observer.source_failed("in", OSError(f"{path}: permission denied"))
    assert capsys.readouterr().err.replace(r"\\", "\\").count(r"a\xff.jsonl") == 2


def test_the_first_few_are_told_at_once() -> None:
    limit = RateLimit(lines=2, every_seconds=10)
    assert [limit.admit("a", at) for at in (0, 1, 2, 3)] == [1, 1, None, None]
    assert limit.admit("b", 3) == 1
    assert limit.admit("a", 10) == 3
    assert limit.admit("a", 11) == 1
    assert limit.admit("a", 12) is None


def test_json_lines(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs(is_terminal=False)
    structlog.get_logger().info("starting", path=BATCH, number=1.5)
    (line,) = lines(capsys)
    assert (line["event"], line["level"], line["number"], line["path"]) == ("starting", "info", 1.5, repr(BATCH))
    assert str(line["timestamp"]).endswith("Z")


def test_what_libraries_log_is_json_too(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs(is_terminal=False)
    logging.getLogger("somebody").warning("no %s", "disk")
    logging.getLogger("somebody").info("chatter")
    try:
        raise ValueError("x")
    except ValueError:
        logging.getLogger("somebody").exception("broken")
    warning, error = lines(capsys)
    assert (warning["event"], warning["level"], warning["logger"]) == ("no disk", "warning", "somebody")
    assert (error["event"], error["level"]) == ("broken", "error")
    assert "ValueError: x" in str(error["exception"])


def test_text_for_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs(is_terminal=True)
    structlog.get_logger().warning("dead_letters", records=3)
    out, err = capsys.readouterr()
    assert out == ""
    assert "dead_letters" in err
    assert "records" in err
    assert err.count("\n") == 1


def test_dead_letters_are_told_with_an_example(capsys: pytest.CaptureFixture[str], clock: Hands) -> None:
    configure_logs(is_terminal=False)
    LogObserver(clock).batch_written(BATCH, outcome("wrong_type", "invalid_json", "wrong_type"))
    LogObserver(clock).batch_written(BATCH, outcome())
    first, second = lines(capsys)
    assert (first["event"], first["reason"], first["records"]) == ("dead_letters", "wrong_type", 2)
    assert (first["source"], first["partition"], first["position"]) == ("in", "a.jsonl", 0)
    assert first["error"] == "wrong_type at 0"
    assert (second["reason"], second["records"], second["position"]) == ("invalid_json", 1, 10)


def test_a_flood_of_dead_letters_is_a_few_lines(capsys: pytest.CaptureFixture[str], clock: Hands) -> None:
    configure_logs(is_terminal=False)
    observer = LogObserver(clock)
    for _ in range(1000):
        observer.batch_written(BATCH, outcome("wrong_type", "wrong_type"))
    clock.now = EVERY_SECONDS
    observer.batch_written(BATCH, outcome("wrong_type"))
    told = lines(capsys)
    assert len(told) == LINES_MAX + 1
    assert sum(int(str(line["records"])) for line in told) == 2001


def test_other_events(capsys: pytest.CaptureFixture[str], clock: Hands) -> None:
    configure_logs(is_terminal=False)
    observer = LogObserver(clock)
    observer.state_changed("running")
    observer.connection_rejected("in", "limit")
    observer.records_refused("in", 3, "full")
    observer.file_changed("in", "a.jsonl", "opened")
    observer.sink_failed("scores", OSError("disk full"))
    observer.synced(0.5, ok=True)
    observer.synced(0.5, ok=False)
    told = [{key: value for key, value in line.items() if key != "timestamp"} for line in lines(capsys)]
    assert told == [
        {"event": "state_changed", "level": "info", "state": "running"},
        {"event": "connection_rejected", "level": "warning", "connections": 1, "source": "in", "reason": "limit"},
        {"event": "records_refused", "level": "warning", "records": 3, "source": "in", "reason": "full"},
        {"event": "file_opened", "level": "info", "source": "in", "path": "a.jsonl"},
        {"event": "sink_failed", "level": "warning", "times": 1, "sink": "scores", "error": "disk full"},
        {"event": "sync_failed", "level": "warning", "times": 1, "seconds": 0.5},
    ]


def test_outages_and_their_ends(capsys: pytest.CaptureFixture[str], clock: Hands) -> None:
    configure_logs(is_terminal=False)
    observer = LogObserver(clock)
    observer.source_failed("in", OSError("a.jsonl: no such device"))
    observer.source_recovered("in")
    observer.sink_failed("scores", OSError("disk full"))
    observer.sink_retried("scores")
    observer.sink_recovered("scores")
    observer.records_recovered("in", 7)
    observer.datagrams_dropped("in", 3)
    observer.synced(0.5, ok=False)
    observer.synced(0.25, ok=True)
    observer.synced(0.25, ok=True)
    assert [(line["event"], line["level"]) for line in lines(capsys)] == [
        ("source_failed", "warning"),
        ("source_recovered", "info"),
        ("sink_failed", "warning"),
        ("sink_recovered", "info"),
        ("records_recovered", "info"),
        ("datagrams_dropped", "warning"),
        ("sync_failed", "warning"),
        ("sync_recovered", "info"),
    ]


def test_the_level_says_what_is_left_out_and_what_is_said_is_counted(
    capsys: pytest.CaptureFixture[str], clock: Hands
) -> None:
    counts = configure_logs(is_terminal=False, options=LogOptions(level="warning"))
    LogObserver(clock).state_changed("running")
    LogObserver(clock).sink_failed("scores", OSError("disk full"))
    logging.getLogger("somebody").warning("no disk")
    assert [line["level"] for line in lines(capsys)] == ["warning", "warning"]
    assert dict(counts) == {"warning": 2}


def test_text_without_colors_where_no_terminal_is(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs(is_terminal=False, options=LogOptions(format="text"))
    structlog.get_logger().warning("dead_letters", records=3, error="\x1b[2Jgone\n")
    err = capsys.readouterr().err
    assert "records=3" in err
    assert "\x1b" not in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("format", ["json", "text"])
def test_nothing_secret_is_said(capsys: pytest.CaptureFixture[str], format: LogFormat, clock: Hands) -> None:
    configure_logs(is_terminal=False, options=LogOptions(format=format))
    LogObserver(clock).sink_failed("scores", OSError("POST https://ann:s3cret@host/?token=s3cret: 401"))
    structlog.get_logger().info("starting", token="s3cret", headers={"x-api-key": "s3cret"}, path=["a?key=s3cret"])
    logging.getLogger("somebody").warning("Authorization: Bearer s3cret")
    try:
        raise ValueError("https://ann:s3cret@host")
    except ValueError:
        logging.getLogger("somebody").exception("broken")
    err = capsys.readouterr().err
    assert "s3cret" not in err
    assert err.count("***") >= 6


def test_a_library_that_floods_is_a_few_lines(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs(is_terminal=False)
    for number in range(100):
        logging.getLogger("somebody").warning("try %d", number)
    assert len(lines(capsys)) == LINES_MAX


def test_a_message_may_name_its_event(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs(is_terminal=False)
    logging.getLogger("somebody").warning("a call hangs", extra={"event": "worker_restarted", "fields": {"batch": 3}})
    (line,) = lines(capsys)
    assert (line["event"], line["batch"], line["logger"]) == ("worker_restarted", 3, "somebody")
