"""Which metrics there are, for panels, rules and pages to name."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from streambatch.observe import CATALOGUE

OF_CLIENT_LIBRARY: dict[str, tuple[str, ...]] = {
    "process_cpu_seconds_total": (),
    "process_max_fds": (),
    "process_open_fds": (),
    "process_resident_memory_bytes": (),
    "process_start_time_seconds": (),
}
"""What prometheus-client's ProcessCollector says of a process."""
COMING: dict[str, tuple[str, ...]] = {}
"""Promised and not exported yet, with their labels. The list shrinks until it is empty, and nothing is added to it."""
EXPORTED: dict[str, tuple[str, ...]] = {metric.name: metric.labels for metric in CATALOGUE}
OF_PROMETHEUS: dict[str, tuple[str, ...]] = {"up": ()}
KNOWN = {**EXPORTED, **COMING, **OF_CLIENT_LIBRARY, **OF_PROMETHEUS}
OF_TARGETS = {"job", "instance"}
_HISTOGRAMS = {metric.name for metric in CATALOGUE if metric.kind == "histogram"}
_NAME = re.compile(r"\b(?:streambatch_[a-z_]+|process_[a-z_]+|up(?=\{))(?!\w)")
_SELECTOR = re.compile(rf"({_NAME.pattern})\{{([^}}]*)\}}")
_MATCHER = re.compile(r'(\w+)\s*(=~|!~|!=|=)\s*"([^"]*)"')


class Selector(NamedTuple):
    """A metric in a query, and what its labels are held to: operator and value."""

    metric: str
    matchers: dict[str, tuple[str, str]]


def named_in(text: str) -> set[str]:
    """Return the metrics that a query or a page names; of a histogram's series, the histogram."""
    # A recorded series holds the name of a metric between two colons.
    without_recorded = re.sub(r"\b[a-z_]+:[a-z_]+:\w+", "", text)
    return {_metric_of(name) for name in _NAME.findall(without_recorded)}


def selectors_in(expr: str) -> Iterator[Selector]:
    """Yield each metric that a query selects with matchers."""
    for name, inside in _SELECTOR.findall(expr):
        yield Selector(_metric_of(name), {label: (how, value) for label, how, value in _MATCHER.findall(inside)})


def labels_of(metric: str) -> set[str]:
    """Return the labels that a metric's series have once they are scraped."""
    return {*KNOWN[metric], *OF_TARGETS, *({"le"} if metric in _HISTOGRAMS else ())}


def _metric_of(series: str) -> str:
    base = re.sub(r"_(bucket|sum|count)$", "", series)
    return base if base in _HISTOGRAMS else series
