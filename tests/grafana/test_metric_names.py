"""Panels, rules and pages name metrics that exist, and every metric is looked at somewhere."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.grafana.boards import ROOT, RULES, RUNBOOKS, annotation_queries, by_labels, rules, targets
from tests.grafana.metric_names import COMING, EXPORTED, KNOWN, labels_of, named_in, selectors_in

GENERATED = ROOT / "docs" / "reference" / "metrics.md"
"""Names every metric by its making, so it doesn't count as looking at one."""
PAGES = [*RUNBOOKS, ROOT / "grafana" / "README.md", ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def queries() -> Iterator[tuple[str, str]]:
    """Yield where each query stands, and the query."""
    for target in (*targets(), *annotation_queries()):
        yield str(target), target.expr
    for rule in (*rules("alert"), *rules("record")):
        yield rule.get("alert") or rule["record"], rule["expr"]


def test_what_is_coming_is_not_there_yet() -> None:
    assert set(COMING) & set(EXPORTED) == set(), "exported by now: take it off the list"


def test_queries_name_metrics_and_labels_that_exist() -> None:
    recorded = {rule["record"] for rule in rules("record")}
    for where, expr in queries():
        metrics = named_in(expr)
        assert metrics or any(name in expr for name in recorded), where
        assert metrics <= set(KNOWN), where
        for metric, matchers in selectors_in(expr):
            assert set(matchers) <= labels_of(metric), where
        labels = [labels_of(metric) for metric in metrics]
        assert not metrics or by_labels(expr) <= set().union(*labels), where


def test_pages_name_metrics_that_exist() -> None:
    for page in PAGES:
        if page != GENERATED:
            assert named_in(page.read_text()) <= set(KNOWN), page


def test_every_metric_is_looked_at() -> None:
    texts = [expr for _, expr in queries()] + [page.read_text() for page in PAGES if page != GENERATED]
    named = set().union(*map(named_in, texts))
    assert set(KNOWN) - named == set()


def test_recorded_series_are_named_as_they_are_recorded() -> None:
    recorded = {rule["record"]: rule["expr"] for rule in rules("record")}
    for rule in rules("alert"):
        for word in rule["expr"].split():
            if ":" in word and not word.startswith(("up", '"')):
                assert word in recorded, rule["alert"]
    for name, expr in recorded.items():
        labels, metric, _ = name.split(":")
        assert named_in(expr) or any(other in expr for other in recorded), name
        assert "by (" not in expr or set(labels.split("_")) <= by_labels(expr), name
        assert metric.startswith("streambatch_"), name


@pytest.mark.parametrize(
    ("text", "metrics"),
    [
        ("rate(streambatch_wait_seconds_bucket{at='queue'}[5m])", {"streambatch_wait_seconds"}),
        ("streambatch_model_info_sum", {"streambatch_model_info_sum"}),
        ("job_instance:streambatch_event_loop_lag_seconds:p99_rate5m > 1", set()),
        ('up{job="a"} == 0 and update', {"up"}),
        ("changes(process_start_time_seconds[5m])", {"process_start_time_seconds"}),
    ],
)
def test_names_are_found(text: str, metrics: set[str]) -> None:
    assert named_in(text) == metrics


def test_rules_are_all_read() -> None:
    assert sum(path.read_text().count("- alert:") for path in RULES) == len(rules("alert")) == 17
    assert sum(path.read_text().count("- record:") for path in RULES) == len(rules("record"))
