"""Rules and queries are valid, alerts fire when they should and only then, and each has a runbook that is true."""

from __future__ import annotations

import json
import re
import subprocess
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command

from streambatch.cli.app import app
from tests.grafana.boards import (
    DASHBOARDS,
    GRAFANA,
    PROMETHEUS,
    ROOT,
    RULES,
    RUNBOOKS,
    annotation_queries,
    dashboard,
    needs_prometheus,
    panels_of,
    rules,
    substituted,
    targets,
)

ALERTS = {
    "Down", "UnintentionalDrop", "Stalled", "CheckpointStale", "SinkStopped", "SpoolCorruption", "ConservationBroken",
    "RestartLoop", "SpoolFullIn4h", "QueueSaturated", "Backpressure", "LagGrowing", "LatencyHigh", "SinkErrors",
    "DeadLetters", "LoopLag", "ReloadFailed",
}  # fmt: skip
TESTS = PROMETHEUS / "alerts_test.yml"
COMING_COMMANDS = {"tune"}
"""Commands that runbooks name and that are not there yet. The list shrinks until it is empty."""


def promtool(*arguments: str | Path, folder: Path = PROMETHEUS) -> str:
    done = subprocess.run(["promtool", *arguments], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@needs_prometheus
def test_rules_are_valid() -> None:
    assert promtool("check", "rules", "--lint-fatal", *RULES).count("SUCCESS") == len(RULES)


@needs_prometheus
def test_the_example_of_a_config_is_valid() -> None:
    promtool("check", "config", "prometheus.yml")


@pytest.mark.slow
@needs_prometheus
def test_alerts_fire_when_they_should() -> None:
    promtool("test", "rules", TESTS.name)


@needs_prometheus
def test_every_query_of_the_dashboards_is_valid(tmp_path: Path) -> None:
    found = [
        {"record": f"query:{number}", "expr": substituted(target.expr)}
        for number, target in enumerate((*targets(), *annotation_queries()))
    ]
    (tmp_path / "queries.yml").write_text(json.dumps({"groups": [{"name": "queries", "rules": found}]}))
    assert f"{len(found)} rules found" in promtool("check", "rules", "queries.yml", folder=tmp_path)


def test_provisioning_finds_what_the_readme_says_to_copy() -> None:
    provisioning = GRAFANA / "provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources" / "prometheus.yml").read_text())["datasources"]
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "streambatch.yml").read_text())["providers"]
    readme = (GRAFANA / "README.md").read_text()
    assert f"`{provider['options']['path']}`" in readme
    assert f"`{source['url'].removeprefix('$')}`" in readme
    example = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
    assert source["jsonData"]["timeInterval"] == example["global"]["scrape_interval"]
    assert example["rule_files"] == [path.name for path in RULES]


def test_every_alert_has_a_case_in_which_it_fires_and_one_in_which_it_does_not() -> None:
    cases: dict[str, set[bool]] = defaultdict(set)
    for test in yaml.safe_load(TESTS.read_text())["tests"]:
        for case in test["alert_rule_test"]:
            cases[case["alertname"]].add(bool(case.get("exp_alerts")))
    assert cases == {f"Streambatch{alert}": {True, False} for alert in ALERTS}


def test_alerts_say_what_is_wrong_and_what_to_do() -> None:
    found = {rule["alert"]: rule for rule in rules("alert")}
    assert set(found) == {f"Streambatch{alert}" for alert in ALERTS}
    for name, rule in found.items():
        assert rule["labels"]["severity"] in ("critical", "warning"), name
        assert set(rule["annotations"]) == {"summary", "description", "runbook_url"}, name
        assert re.search(r"\$labels\.(pipeline|instance)\b", rule["annotations"]["summary"]), name
        page = rule["annotations"]["runbook_url"].removeprefix("{{ $externalLabels.runbooks }}/")
        text = (GRAFANA / "runbooks" / page).read_text()
        assert f"Streambatch{text.splitlines()[0].removeprefix('# ')}" == name
    assert len(RUNBOOKS) == len(ALERTS)


@pytest.mark.parametrize("page", RUNBOOKS, ids=lambda page: page.stem)
def test_a_runbook_names_what_is_there(page: Path) -> None:
    text = page.read_text()
    titles = {panel["title"] for path in DASHBOARDS for panel in panels_of(dashboard(path))}
    titles |= {one.ref for one in annotation_queries()} | {"score", "sink"}
    spoken_of = [one for one in re.findall(r"(?<!\*)\*([^*\n]+)\*(?!\*)", text) if not one.startswith("wait: ")]
    assert set(spoken_of) <= titles
    for target in re.findall(r"\]\(([^)]+)\)", text):
        assert (page.parent / target).exists(), target
    assert commands_in(text) <= commands() | COMING_COMMANDS
    config = (ROOT / "docs" / "reference" / "config.md").read_text()
    for section, key in re.findall(r"`\[(\w+)\] (\w+)", text):
        assert re.search(rf"^## \[{section}\].*?^\| `{key}`", config, re.S | re.M), f"[{section}] {key}"
    for path in re.findall(r"9464(/\w+)", text):
        assert path in ("/livez", "/readyz", "/healthz", "/status")
    assert [heading for heading in text.splitlines() if heading.startswith("## ")] == [
        "## Find the cause",
        "## What to do",
    ]


def test_commands_that_were_coming_are_there() -> None:
    assert COMING_COMMANDS & commands() == set(), "there by now: take them off the list"


def commands() -> set[str]:
    """Return the commands that there are."""
    group: Any = get_command(app)
    return set(group.commands)


def commands_in(text: str) -> set[str]:
    """Return the commands that a page says to type."""
    return set(re.findall(r"`streambatch ([a-z-]+)", text))
