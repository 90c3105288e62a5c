"""The dashboards and rules that are checked in, taken apart."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from tests.programs import needs

ROOT = Path(__file__).parents[2]
GRAFANA = ROOT / "grafana"
DASHBOARDS = sorted((GRAFANA / "dashboards").glob("*.json"))
PROMETHEUS = GRAFANA / "prometheus"
RULES = [PROMETHEUS / "recording.yml", PROMETHEUS / "alerts.yml"]
RUNBOOKS = sorted((GRAFANA / "runbooks").glob("*.md"))
VARIABLES = {"$job": ".+", "$instance": ".+", "$pipeline": ".+", "$__rate_interval": "10s", "$__range": "1m"}
needs_prometheus = needs("promtool", "prometheus")


class Target(NamedTuple):
    """A query, and where it stands."""

    dashboard: str
    panel: str
    ref: str
    expr: str

    def __str__(self) -> str:
        return f"{self.dashboard}, {self.panel}, {self.ref}: {self.expr}"


def dashboard(path: Path) -> dict[str, Any]:
    """Return a dashboard as it is in its file."""
    found: dict[str, Any] = json.loads(path.read_bytes())
    return found


def panels_of(board: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield every panel, also those in a row that is collapsed; rows themselves left out."""
    for panel in board["panels"]:
        if panel["type"] == "row":
            yield from panel["panels"]
        else:
            yield panel


def targets() -> list[Target]:
    """Return every query of every panel."""
    boards = [dashboard(path) for path in DASHBOARDS]
    return [
        Target(board["uid"], panel["title"], target["refId"], target["expr"])
        for board in boards
        for panel in panels_of(board)
        for target in panel["targets"]
    ]


def annotation_queries() -> list[Target]:
    """Return the queries of the annotations."""
    boards = [dashboard(path) for path in DASHBOARDS]
    return [
        Target(board["uid"], "annotation", one["name"], one["expr"])
        for board in boards
        for one in board["annotations"]["list"]
    ]


def substituted(expr: str) -> str:
    """Return a query as Grafana sends it, everything chosen."""
    for name, value in VARIABLES.items():
        expr = expr.replace(name, value)
    assert "$" not in expr, expr
    return expr


def rules(kind: str) -> list[dict[str, Any]]:
    """Return the rules of one kind, `alert` or `record`, from all files."""
    groups = [group for path in RULES for group in yaml.safe_load(path.read_text())["groups"]]
    return [rule for group in groups for rule in group["rules"] if kind in rule]


def by_labels(expr: str) -> set[str]:
    """Return the labels that a query aggregates or matches by."""
    found = re.findall(r"\b(?:by|on|group_left)\s*\(([^)]*)\)", expr)
    return {label.strip() for labels in found for label in labels.split(",") if label.strip()}
