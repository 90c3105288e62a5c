"""A real daemon under load, scraped by a real Prometheus: every panel has something to show."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from tests.e2e.running import Daemon, running
from tests.grafana.boards import annotation_queries, needs_prometheus, rules, substituted, targets
from tests.grafana.metric_names import COMING, EXPORTED, named_in
from tests.grafana.prometheus import Prometheus, is_data, scraping

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120), needs_prometheus]
CONFIG = """
    name = "rides"
    [source.live]
    type = "tcp"
    listen = "127.0.0.1:0"
    spool = { max_bytes = "64MiB" }
    [source.logs]
    type = "file"
    path = "logs/*.jsonl"
    follow = true
    [record]
    id = "id"
    features = "x"
    shape = [2]
    [batch]
    max_wait = "20ms"
    [[preprocess]]
    type = "standardize"
    mean = [0.0, 0.0]
    scale = [1.0, 1.0]
    [model]
    type = "linear"
    path = "model.npz"
    [sink.scores]
    type = "file"
    path = "scores.jsonl"
    [delivery]
    checkpoint_interval = "200ms"
    [http]
    listen = "127.0.0.1:0"
    [drift]
    enabled = true
    """
BLOCK = b'{"id": 1, "x": [1, 2]}\n' * 50 + b"not json\n" + b'{"id": 2, "x": [1]}\n'
PAUSE_SECONDS = 0.02
SETTLED = "min(count_over_time(streambatch_records_scored_total[10s])) >= 8"


@contextmanager
def load(address: tuple[str, int]) -> Iterator[None]:
    """Send records all the while, one in 26 of them broken."""
    enough = threading.Event()

    def send() -> None:
        with socket.create_connection(address, timeout=20) as connection:
            while not enough.wait(PAUSE_SECONDS):
                connection.sendall(BLOCK)

    sender = threading.Thread(target=send)
    sender.start()
    try:
        yield
    finally:
        enough.set()
        sender.join()


@pytest.fixture(scope="module")
def observed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Daemon, Prometheus]]:
    folder = tmp_path_factory.mktemp("observed")
    np.savez(folder / "model.npz", weights=np.ones(2, np.float32), bias=0.0)
    (folder / "logs").mkdir()
    (folder / "logs/a.jsonl").write_bytes(BLOCK)
    with running(folder, CONFIG) as daemon:
        target = daemon.event("admin_listening")["url"].removeprefix("http://")
        with load(daemon.address("live")), scraping(folder, target) as prometheus:
            prometheus.until(SETTLED)
            prometheus.until("sum(rate(streambatch_records_dead_lettered_total[10s])) > 0")
            prometheus.until("count(job_instance_pipeline:streambatch_records_dead_lettered:ratio_rate5m) > 0")
            yield daemon, prometheus


def test_every_panel_has_something_to_show(observed: tuple[Daemon, Prometheus]) -> None:
    _, prometheus = observed
    there = [target for target in targets() if not named_in(target.expr) & set(COMING)]
    assert [str(target) for target in there if not is_data(prometheus.values(substituted(target.expr)))] == []


def test_what_is_not_there_yet_is_asked_for_rightly_and_really_not_there(observed: tuple[Daemon, Prometheus]) -> None:
    daemon, prometheus = observed
    for target in (*targets(), *annotation_queries()):
        if named_in(target.expr) & set(COMING):
            prometheus.values(substituted(target.expr))
    page = daemon.get("/metrics")[1].decode()
    served = {line.split()[2] for line in page.splitlines() if line.startswith("# TYPE")}
    assert served & set(COMING) == set(), "exported by now: take it off the list"
    assert set(EXPORTED) <= served


def test_variables_have_values(observed: tuple[Daemon, Prometheus]) -> None:
    _, prometheus = observed
    assert prometheus.values('count(count by (pipeline) (streambatch_records_unacked{job=~".+",instance=~".+"}))') == [
        1
    ]
    assert prometheus.values('count(count by (instance) (streambatch_build_info{job="streambatch"}))') == [1]


def test_rules_are_evaluated_and_find_the_broken_records(observed: tuple[Daemon, Prometheus]) -> None:
    _, prometheus = observed
    loaded = [rule for group in prometheus.ask("rules")["groups"] for rule in group["rules"]]
    assert len(loaded) == len(rules("alert")) + len(rules("record"))
    assert {rule.get("lastError", "") for rule in loaded} == {""}
    for rule in rules("record"):
        assert is_data(prometheus.values(rule["record"])), rule["record"]
    active = prometheus.ask("alerts")["alerts"]
    assert "StreambatchDeadLetters" in {alert["labels"]["alertname"] for alert in active}
    assert [alert for alert in active if alert["state"] == "firing"] == [], "pending for minutes, or never"
