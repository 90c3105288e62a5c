"""The live page of real daemons, in a real browser: what it shows of them, and how it can be used."""

from __future__ import annotations

import itertools
import json
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest

from tests.connectors.http.test_sink import served
from tests.e2e.browser import TAB, Browser, Scheme, browsing, needs_browser
from tests.e2e.ports import held_port
from tests.e2e.running import Daemon, running

CONFIG = """
    name = "rides"
    [source.rides_in]
    type = "tcp"
    listen = "127.0.0.1:0"
    [record]
    id = "id"
    features = "x"
    shape = [2]
    [batch]
    max_wait = "1ms"
    [model]
    type = "linear"
    path = "model.npz"
    [sink.scores]
    {sink}
    [delivery]
    checkpoint_interval = "100ms"
    [http]
    {http}
    """
FILE = 'type = "file"\npath = "out.jsonl"'
LOCAL = 'listen = "127.0.0.1:0"'
GOOD, DEAD = b'{"id": 1, "x": [1, 2]}\n', b'{"id": 2, "x": [3]}\n'
LOADED_WITHIN_MS = 5000
"""What a page may take on a machine that is busy with other tests; on an idle one it is less than a fifth."""
SCREENS = ((1280, 900), (390, 844), (320, 640))
SCHEMES: tuple[Scheme, ...] = ("light", "dark")
CONTRAST = Path(__file__).with_name("contrast.js").read_text()

pytestmark = [pytest.mark.slow, needs_browser, pytest.mark.timeout(120)]


@pytest.fixture(scope="module")
def one_browser() -> Iterator[Browser]:
    with browsing() as browser:
        yield browser


@pytest.fixture
def browser(one_browser: Browser) -> Browser:
    one_browser.open("about:blank")
    one_browser.screen(1280, 900)
    one_browser.console()
    one_browser.requests()
    return one_browser


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    np.savez(tmp_path / "model.npz", weights=[1.0, 10.0], bias=0.5)
    return tmp_path


@contextmanager
def shown(folder: Path, browser: Browser, sink: str = FILE, http: str = LOCAL, path: str = "/") -> Iterator[Daemon]:
    """Run a daemon and open its page."""
    with running(folder, CONFIG.format(sink=sink, http=http)) as daemon:
        daemon.event("state_changed", state="running")
        url = daemon.event("admin_listening")["url"].replace("0.0.0.0", "127.0.0.1")
        browser.open(f"{url}{path}")
        yield daemon


def until_another_second(browser: Browser) -> None:
    before = browser.text(place("at"))
    browser.until(lambda: browser.text(place("at")) != before, "another second")


def place(name: str) -> str:
    return f"[data-html={name}]"


def test_it_opens_quickly_is_told_each_second_and_shows_what_died(
    folder: Path, browser: Browser, record_property: Callable[[str, object], None]
) -> None:
    with shown(folder, browser) as daemon:
        timing = browser.run("return performance.getEntriesByType('navigation')[0].loadEventEnd")
        record_property("loaded_ms", timing)
        assert 0 < timing < LOADED_WITHIN_MS
        browser.until(lambda: browser.text(".pill") == "Ready", "ready")
        for _ in range(3):
            until_another_second(browser)
        daemon.send("rides_in", GOOD * 30 + DEAD * 10)
        browser.until(lambda: browser.text(place("sum_dead_lettered")) == "10", "dead letters counted")
        browser.until(lambda: "expected 2 numbers, found 1" in browser.text(place("dead")), "dead letters shown")
        browser.until(lambda: browser.text(place("dead_share")) == "25 %", "their share")
        assert browser.run("return document.querySelector('#t-dead').parentNode.dataset.tone") == "bad"
        assert browser.text(place("sum_scored")) == "30"
        assert browser.text(place("balance")) == "every record is accounted for"
        assert browser.console() == []
        hosts = {urlsplit(url).netloc for url in browser.requests() if not url.startswith(("data:", "about:"))}
        assert hosts == {urlsplit(daemon.event("admin_listening")["url"]).netloc}


def test_a_sink_that_is_away_is_shown_and_so_is_its_return(folder: Path, browser: Browser) -> None:
    with served() as server, shown(folder, browser, f'type = "http"\nurl = "{server.url}"') as daemon:
        server.statuses += [503] * 1000
        daemon.send("rides_in", GOOD)
        browser.until(lambda: browser.text(".pill") == "Not ready", "not ready")
        browser.until(lambda: "answered 503" in browser.text(".reasons"), "the reason")
        browser.until(lambda: "not over" in browser.text(place("errors")), "the error")
        browser.until(lambda: browser.run("return document.title").startswith("Not ready · rides"), "the title")
        browser.until(lambda: "Not ready. sink scores: " in browser.text("#said"), "the announcement")
        server.statuses.clear()
        browser.until(lambda: browser.text(place("sum_scored")) == "1", "the score")
        browser.until(lambda: browser.text(".pill") == "Ready", "ready again")
        browser.until(lambda: "not over" not in browser.text(place("errors")), "the end of the error")
        assert browser.console() == []


def test_a_stop_is_shown_and_doesn_t_wait_for_who_looks(folder: Path, browser: Browser) -> None:
    with shown(folder, browser) as daemon:
        daemon.send("rides_in", GOOD * 3)
        browser.until(lambda: browser.text(place("sum_received")) == "3", "records")
        assert daemon.stop() == 0
    browser.until(lambda: "The pipeline has ended" in browser.text("#away"), "the end")
    assert browser.text(".pill") == "Stopped"
    assert browser.text(place("sum_scored")) == "3"


def test_a_daemon_that_says_nothing_is_missed_and_found_again(folder: Path, browser: Browser) -> None:
    with shown(folder, browser) as daemon:
        assert browser.run("return document.querySelector('#away').hidden")
        daemon.process.send_signal(signal.SIGSTOP)
        browser.until(lambda: "No word from the daemon" in browser.text("#away"), "silence")
        assert browser.run("return document.title").startswith("No answer")
        daemon.process.send_signal(signal.SIGCONT)
        browser.until(lambda: browser.run("return document.querySelector('#away').hidden"), "its voice")


def test_it_goes_on_by_itself_with_the_next_run(folder: Path, browser: Browser) -> None:
    with held_port() as port:
        http = f'listen = "127.0.0.1:{port}"'
        with shown(folder, browser, http=http) as daemon:
            first = browser.text(place("run"))
            daemon.process.kill()
        browser.until(lambda: browser.text("#away") != "", "the loss")
        with running(folder, CONFIG.format(sink=FILE, http=http)):
            browser.until(lambda: browser.text(place("run")) not in ("", first), "the next run")
            browser.until(lambda: browser.run("return document.querySelector('#away').hidden"), "all is well")
            browser.until(lambda: first in browser.text(place("runs")), "the run before")


def test_off_this_machine_a_token_opens_it_once_and_for_all(folder: Path, browser: Browser) -> None:
    http = 'listen = "0.0.0.0:0"\ntoken = "opensesame"'
    with shown(folder, browser, http=http, path="/?token=opensesame") as daemon:
        assert browser.run("return location.search") == ""
        until_another_second(browser)
        assert browser.run("return document.cookie") == ""
        for path in ("/", "/events", "/status", "/config"):
            assert daemon.get(path)[0] == 401
        browser.run("document.querySelector('a[href=\"/config\"]').click()")
        browser.until(lambda: '"token": "***"' in browser.text("body"), "the config without the token")
        assert "opensesame" not in browser.text("body")


def test_without_scripts_it_shows_the_moment(folder: Path, browser: Browser) -> None:
    browser.without_scripts()
    try:
        with shown(folder, browser) as daemon:
            daemon.send("rides_in", GOOD * 3)
            daemon.until(lambda: daemon.status()["records"]["scored"] == 3, "scores")
            daemon.until(lambda: b'data-html="sum_scored">3<' in daemon.get("/")[1], "the next sample")
            browser.open(daemon.event("admin_listening")["url"])
            assert ("StaticText", "Ready") in browser.accessible()
    finally:
        browser.without_scripts(are_off=False)


def test_who_doesn_t_see_it_hears_what_is_where(folder: Path, browser: Browser) -> None:
    with shown(folder, browser):
        browser.until(lambda: browser.text(".pill") == "Ready", "ready")
        told = browser.accessible()
    headings = [name for role, name in told if role == "heading"]
    assert headings[:5] == ["rides", "Scored", "Latency, p99", "Dead letters", "Queue"]
    assert headings[5].startswith("What limits")
    assert {"banner", "main", "navigation", "contentinfo", "status"} <= {role for role, _ in told}
    for role, name in told:
        if role in ("button", "link", "region", "group", "table", "columnheader", "rowheader", "navigation"):
            assert name, role
    assert ("button", "Pause") in told
    assert ("RootWebArea", "Ready · rides · streambatch") in told


def test_all_of_it_can_be_reached_by_keyboard(folder: Path, browser: Browser) -> None:
    focused = "const e = document.activeElement; return e.id || e.getAttribute('aria-labelledby') || e.textContent"
    with shown(folder, browser):
        order = []
        for _ in range(30):
            browser.press(TAB)
            order.append(browser.run(focused))
            outline = browser.run("return getComputedStyle(document.activeElement).outlineStyle")
            assert outline != "none" or order[-1] == browser.run("return document.body.textContent")
        wanted = ["Skip to the figures", "pause", "h-errors", "h-parts", "h-stages", "h-batch", "h-dead", "h-account"]
        assert order[: len(wanted)] == wanted
        assert {"Settings", "h-runs", "status", "config", "metrics"} <= set(order)
        browser.run("document.querySelector('.skip').focus()")
        browser.press("\ue007")
        browser.until(lambda: browser.run("return document.activeElement.id") == "main", "the main part")
        browser.run("document.querySelector('#pause').focus()")
        browser.press(" ")
        assert browser.run("return document.querySelector('#pause').getAttribute('aria-pressed')") == "true"


def test_it_fits_on_a_phone_and_can_be_read_by_day_and_night(folder: Path, browser: Browser) -> None:
    with shown(folder, browser) as daemon:
        daemon.send("rides_in", GOOD * 30 + DEAD * 10)
        browser.until(lambda: browser.text(place("dead_share")) == "25 %", "dead letters")
        for (width, height), scheme in itertools.product(SCREENS, SCHEMES):
            browser.screen(width, height, scheme)
            assert browser.run("return document.documentElement.scrollWidth") <= width
            assert json.loads(browser.run(CONTRAST)) == [], (width, scheme)
