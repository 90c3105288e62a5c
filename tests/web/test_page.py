"""What the page shows of a pipeline, rendered: every figure, at any moment of a run, and nothing that isn't escaped."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streambatch.core.report import Counts
from streambatch.web.page import Page
from streambatch.web.page.figures import bar, count, digest, line, moment, rate, rows, seconds, share, size, text
from streambatch.web.page.shown import shown
from tests.snapshots import FakePipeline, snapshot_of
from tests.web.clients import admin_of

KNOB = {"key": "batch.max_records", "direction": "raise", "now": 64, "to": 512}
DEAD = {
    "at": "2023-11-14T22:13:20.000+00:00", "stage": "decode", "reason": "invalid_json", "source": "rides_in",
    "partition": "in.jsonl", "position": 7, "error": "<script>alert(1)</script>",
}  # fmt: skip
ERROR = {
    "where": "sink scores", "error": "no space left on device", "at": DEAD["at"], "last_at": DEAD["at"], "times": 3,
    "over_at": None,
}  # fmt: skip
RUN = {
    "run": "20231114T221320-abcdef", "started_at": DEAD["at"], "ended_at": None, "why": "failed", "error": "a & b",
    "records": Counts(received=9).as_records(),
}  # fmt: skip
VOID = {"meta", "link", "br"}


def view_of(**changes: Any) -> dict[str, Any]:
    """Return the view of a pipeline that was sampled once, with changes."""
    admin = admin_of(FakePipeline(snapshot_of()))
    admin.watch.sample()
    return {**admin.watch.live_view.view(), **changes}


class Outline(HTMLParser):
    """Checks that every element is closed where it should be, and keeps what there is."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_every_place_of_the_page_is_filled_and_every_figure_has_a_place() -> None:
    page, view = Page(), view_of()
    html, places = page.render(view), shown(view)
    assert "{{" not in html
    elements = [attributes for _, attributes in Outline(html).elements]
    assert {each["data-html"] for each in elements if "data-html" in each} == places["html"].keys() - {"title"}
    assert {each["data-tone-of"] for each in elements if "data-tone-of" in each} == places["tone"].keys()


def test_before_anything_is_known_there_is_a_page_too() -> None:
    view = admin_of().watch.live_view.view()
    assert shown(view)["html"]["state"] == "Unknown"
    Outline(Page().render(view))


@pytest.mark.parametrize(
    ("state", "not_ready", "word", "tone"),
    [
        ("running", [], "Ready", "good"),
        ("running", ["a reason"], "Not ready", "bad"),
        ("starting", ["a reason"], "Starting", "warn"),
        ("draining", ["a reason"], "Draining", "warn"),
        ("stopped", ["a reason"], "Stopped", "idle"),
        ("failed", ["a reason"], "Failed", "bad"),
    ],
)
def test_the_state_is_a_word_and_a_tone(state: str, not_ready: list[str], word: str, tone: str) -> None:
    places = shown(view_of(state=state, ready=not not_ready, not_ready=not_ready))
    assert (places["html"]["state"], places["tone"]["state"]) == (word, tone)
    assert places["html"]["reasons"] == "".join(f"<li>{reason}</li>" for reason in not_ready)


@pytest.mark.parametrize(
    ("scored", "dead", "written", "tone"),
    [
        (0, 0, "&ndash;", "idle"),
        (100, 0, "0 %", "idle"),
        (9999, 1, "0.01 %", "idle"),
        (999, 1, "0.10 %", "warn"),
        (50, 50, "50 %", "bad"),
    ],
)
def test_dead_letters_are_a_share_of_what_was_done(scored: int, dead: int, written: str, tone: str) -> None:
    view = view_of()
    view["rates"] |= {"scored": scored, "dead_lettered": dead}
    assert (shown(view)["html"]["dead_share"], shown(view)["tone"]["dead"]) == (written, tone)


@pytest.mark.parametrize(("fill", "tone"), [(0.5, "idle"), (0.8, "warn"), (1.0, "bad")])
def test_a_queue_that_fills_stands_out(fill: float, tone: str) -> None:
    view = view_of()
    view["queue"] |= {"fill": fill}
    assert shown(view)["tone"]["queue"] == tone


def test_the_verdict_names_the_stage_and_the_knob() -> None:
    verdict = {"stage": "batch", "sentence": "Batches are small.", "knob": KNOB, "evidence": ["8 records", "a < b"]}
    html = shown(view_of(verdict=verdict))["html"]
    assert html["limit"] == "What limits: batch"
    assert html["sentence"] == "Batches are small."
    assert re.sub(r"<[^>]+>", "", html["knob"]) == "What to turn: raise batch.max_records from 64 to 512"
    assert html["evidence"] == "<li>8 records</li><li>a &lt; b</li>"
    without = shown(view_of(verdict={**verdict, "knob": None}))
    assert (without["html"]["knob"], without["tone"]["verdict"]) == ("", "warn")
    assert shown(view_of(verdict={**verdict, "stage": "nothing"}))["tone"]["verdict"] == "idle"


def test_errors_dead_letters_and_runs_are_rows() -> None:
    places = shown(view_of(errors=[ERROR] * 30, dead_letters=[DEAD] * 30, runs=[RUN] * 30))
    for name in ("errors", "dead", "runs"):
        assert places["html"][name].count("<tr>") == 10
    assert "no space left on device" in places["html"]["errors"]
    assert "not over" in places["html"]["errors"]
    assert places["tone"]["errors"] == "bad"
    assert "&lt;script&gt;" in places["html"]["dead"]
    assert "a &amp; b" in places["html"]["runs"]
    over = shown(view_of(errors=[{**ERROR, "over_at": DEAD["at"]}]))
    assert over["tone"]["errors"] == "idle"


@given(st.text())
def test_no_text_becomes_markup(hostile: str) -> None:
    texts = {"pipeline": hostile, "run": hostile, "version": hostile, "not_ready": [hostile], "config_digest": hostile}
    view = view_of(
        **texts,
        verdict={"stage": hostile, "sentence": hostile, "knob": KNOB | {"now": hostile}, "evidence": [hostile]},
        errors=[ERROR | {"where": hostile, "error": hostile}],
        dead_letters=[DEAD | {"partition": hostile, "error": hostile}],
        runs=[RUN | {"why": hostile, "error": hostile}],
    )
    plain = view_of(
        **{name: ["x"] if name == "not_ready" else "x" for name in texts},
        verdict={"stage": "x", "sentence": "x", "knob": KNOB, "evidence": ["x"]},
        errors=[ERROR],
        dead_letters=[DEAD],
        runs=[RUN],
    )
    render = PAGE.render
    assert [tag for tag, _ in Outline(render(view)).elements if tag != "code"] == [
        tag for tag, _ in Outline(render(plain)).elements if tag != "code"
    ]


PAGE = Page()


def test_figures_read_well() -> None:
    assert [count(None), count(0), count(1234567), count(12_345_678)] == ["&ndash;", "0", "1,234,567", "12.35 M"]
    assert [rate(0), rate(0.25), rate(9.96), rate(12_345.6)] == ["0", "0.2", "10.0", "12,346"]
    assert [share(0), share(0.00001), share(0.0012), share(0.25), share(1)] == [
        "0 %", "&lt; 0.01 %", "0.12 %", "25 %", "100 %",
    ]  # fmt: skip
    assert [seconds(0.00002), seconds(0.0123), seconds(3.4), size(1536), size(None)] == [
        "20 µs", "12.3 ms", "3.4 s", "1.5 KiB", "&ndash;",
    ]  # fmt: skip
    assert text("a<b") == "a&lt;b"
    assert text("") == "&ndash;"


def test_a_time_of_today_needs_no_date() -> None:
    assert moment(1_700_000_000, 1_700_000_100) == '<time datetime="2023-11-14T22:13:20+00:00">22:13:20</time>'
    assert ">2023-11-14 22:13:20<" in moment("2023-11-14T22:13:20+00:00", 1_700_010_000)
    assert moment(None) == "&ndash;"


def test_digests_are_short_and_whole_for_who_asks() -> None:
    assert digest("ab" * 32) == f'<code title="{"ab" * 32}">abababababab</code>'
    assert digest(None) == "&ndash;"


@given(st.floats(allow_nan=False) | st.none())
def test_a_bar_stays_in_its_frame(value: float | None) -> None:
    width = re.findall(r'class="work" width="([\d.]+)"', bar(value))
    assert 0 <= float(width[0]) <= 100


@given(st.lists(st.floats(0, 1e12) | st.none(), max_size=120))
def test_a_line_stays_in_its_frame(values: list[float | None]) -> None:
    points = [tuple(map(float, point.split())) for point in re.findall(r"[\d.]+ [\d.]+", line(values))]
    assert all(0 < x <= 120 and 0 <= y <= 32 for x, y in points)


def test_a_line_breaks_where_nothing_was_known() -> None:
    assert line([0, 1, None, 1, 0, None, 1]) == '<path d="M114 31.0L115 1.0M117 1.0L118 31.0"/>'
    assert line([]) == line([None]) == line([1]) == ""


def test_an_empty_table_says_so() -> None:
    assert rows([], none="nothing", columns=3) == '<tr><td class="none" colspan="3">nothing</td></tr>'
