"""The dashboards are fresh, and keep the rules of Grafana's dashboard linter and some of our own."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest
import yaml
from grafana_foundation_sdk.models import units

from grafana.generate import dashboards
from tests.grafana.boards import DASHBOARDS, RUNBOOKS, annotation_queries, dashboard, panels_of, targets
from tests.grafana.metric_names import KNOWN, OF_PROMETHEUS, selectors_in

SOURCE = {"type": "prometheus", "uid": "${datasource}"}
UNITS = {value for name, value in vars(units).items() if not name.startswith("_") and isinstance(value, str)}
ROWS = [
    "Health at a glance", "Flow", "Latency", "Saturation: which stage limits", "Batching", "Model", "Drift", "Sources",
    "Sinks", "Durability", "Process",
]  # fmt: skip
GRID_WIDTH = 24

every_dashboard = pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)


def test_files_are_those_that_the_generator_would_write_now() -> None:
    texts = {path.name: path.read_text() for path in DASHBOARDS}
    assert texts == dashboards(), "stale: run `make dashboards`"


def test_rows_come_in_the_order_an_operator_asks() -> None:
    (board,) = [dashboard(path) for path in DASHBOARDS if "overview" in path.name]
    rows = [panel for panel in board["panels"] if panel["type"] == "row"]
    assert [row["title"] for row in rows] == ROWS
    assert [row["title"] for row in rows if row["collapsed"]] == ["Drift", "Process"]


@every_dashboard
def test_variables(path: Path) -> None:
    """template-datasource-, template-job-, template-instance-, template-label-promql-, on-time-change-reload-rule."""
    board = dashboard(path)
    variables = {one["name"]: one for one in board["templating"]["list"]}
    assert list(variables) == ["datasource", "job", "instance", "pipeline", "runbooks"]
    assert (variables["datasource"]["type"], variables["datasource"]["query"]) == ("datasource", "prometheus")
    assert variables["datasource"]["label"] == "Data source"
    for name in ("job", "instance", "pipeline"):
        one = variables[name]
        assert (one["type"], one["datasource"], one["label"].lower()) == ("query", SOURCE, name)
        assert (one["multi"], one["includeAll"], one["allValue"], one["refresh"]) == (True, True, ".+", 2)
        queried = re.fullmatch(rf"label_values\((\w+)(?:\{{.*\}})?, {name}\)", one["query"]["query"])
        assert queried, one["query"]
        assert queried[1] in KNOWN


@every_dashboard
def test_a_dashboard_is_not_edited_in_place(path: Path) -> None:
    """template-uneditable-rule: what is generated is changed in the generator."""
    assert dashboard(path)["editable"] is False


@every_dashboard
def test_panels_say_what_they_show(path: Path) -> None:
    """panel-title-description-, panel-units-, panel-datasource-, panel-no-targets-rule."""
    for panel in panels_of(dashboard(path)):
        title, defaults = panel["title"], panel["fieldConfig"]["defaults"]
        assert title
        assert panel["description"].endswith("."), title
        assert defaults["unit"] in UNITS, title
        assert panel["datasource"] == SOURCE, title
        assert panel["targets"], title
        for target in panel["targets"]:
            assert target["datasource"] == SOURCE, title
            assert target["legendFormat"], title
        units_of_cells = [
            at["value"] for o in panel["fieldConfig"]["overrides"] for at in o["properties"] if at["id"] == "unit"
        ]
        assert set(units_of_cells) <= UNITS, title


@every_dashboard
def test_no_data_source_is_named(path: Path) -> None:
    assert set(re.findall(r'"uid": "(.*?)"', path.read_text())) == {SOURCE["uid"], dashboard(path)["uid"]}


@every_dashboard
def test_panels_lie_on_the_grid_side_by_side(path: Path) -> None:
    board = dashboard(path)
    cells: Counter[tuple[int, int]] = Counter()
    everything = [one for panel in board["panels"] for one in (panel, *panel.get("panels", ()))]
    for panel in everything:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= GRID_WIDTH, panel["title"]
        cells.update((x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"]))
    assert set(cells.values()) == {1}, "panels overlap"
    ids = [panel["id"] for panel in everything]
    assert len(set(ids)) == len(ids)
    titles = Counter(panel["title"] for panel in panels_of(board))
    assert {title for title, times in titles.items() if times > 1} == set()


def test_queries_are_held_to_the_variables() -> None:
    """target-job-rule, target-instance-rule, and the same for the pipeline."""
    for target in (*targets(), *annotation_queries()):
        found = list(selectors_in(target.expr))
        assert found, target
        for metric, matchers in found:
            wanted = ["job", "instance", *(["pipeline"] if "pipeline" in KNOWN[metric] else [])]
            assert {name: matchers.get(name) for name in wanted} == {name: ("=~", f"${name}") for name in wanted}, (
                target
            )
            assert metric not in OF_PROMETHEUS


def test_rates_are_taken_over_the_rate_interval() -> None:
    """target-rate-interval-rule, but for what `.lint` leaves out with a reason."""
    left_out = yaml.safe_load((DASHBOARDS[0].parent / ".lint").read_text())["exclusions"]["target-rate-interval-rule"]
    allowed = {entry["panel"] for entry in left_out["entries"]}
    others = {target.panel for target in targets() if set(re.findall(r"\[(.*?)\]", target.expr)) - {"$__rate_interval"}}
    assert left_out["reason"]
    assert others == allowed


def test_counters_are_only_looked_at_by_how_they_grow() -> None:
    """target-counter-agg-rule."""
    for target in (*targets(), *annotation_queries()):
        counters = len(re.findall(r"_total\{", target.expr))
        assert counters == len(re.findall(r"\b(?:rate|increase)\(\w+_total\{", target.expr)), target


@every_dashboard
def test_links_lead_somewhere(path: Path) -> None:
    board = dashboard(path)
    assert any(link["type"] == "dashboards" and link["tags"] == board["tags"] for link in board["links"])
    urls = [link["url"] for panel in panels_of(board) for link in panel.get("links", ())]
    assert urls
    assert set(urls) <= {f"${{runbooks}}/{page.name}" for page in RUNBOOKS}
    uids = {dashboard(one)["uid"] for one in DASHBOARDS}
    assert set(re.findall(r'"/d/([\w-]+)', path.read_text())) <= uids
