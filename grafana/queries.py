"""PromQL for the panels.

Every selector is held to the dashboard's variables, every rate is taken over `$__rate_interval`, and a quantile of
nothing is no point at all instead of NaN.
"""

from __future__ import annotations

from typing import NamedTuple

PREFIX = "streambatch_"
OF_PROCESS = 'job=~"$job",instance=~"$instance"'
OF_PIPELINE = f'{OF_PROCESS},pipeline=~"$pipeline"'
RATE, RANGE = "$__rate_interval", "$__range"
UNINTENDED = 'intentional="false"'
"""Of the records that were dropped, those that the config did not ask to have dropped."""


class Query(NamedTuple):
    """One query of a panel, and the name that its series go by."""

    expr: str
    legend: str


def of_pipeline(name: str, extra: str = "") -> str:
    """Return the selector of a metric that has the label `pipeline`; extra: matchers of its other labels."""
    return f"{PREFIX}{name}{{{_joined(OF_PIPELINE, extra)}}}"


def of_process(name: str, extra: str = "") -> str:
    """Return the selector of a metric of the process; names of the client library's own have no prefix."""
    prefix = "" if name.startswith("process_") else PREFIX
    return f"{prefix}{name}{{{_joined(OF_PROCESS, extra)}}}"


def total(selector: str, by: str = "", *, function: str = "sum") -> str:
    """Return the sum of a selector, or another aggregate, by labels."""
    return f"{function} by ({by}) ({selector})" if by else f"{function}({selector})"


def rate(selector: str, by: str = "") -> str:
    """Return the growth of a counter in a second, by labels."""
    return total(f"rate({selector}[{RATE}])", by)


def increase(selector: str, by: str = "") -> str:
    """Return by how much a counter grew since the point before, by labels."""
    return total(f"increase({selector}[{RATE}])", by)


def in_range(selector: str, by: str = "") -> str:
    """Return by how much a counter grew in all the time on show, by labels."""
    return total(f"increase({selector}[{RANGE}])", by)


def age(selector: str, by: str = "") -> str:
    """Return the seconds since the earliest of some moments, by labels."""
    return f"time() - {total(selector, by, function='min')}"


def ratio(part: str, whole: str) -> str:
    """Return a share; where the whole is nothing there is none."""
    return f"{part} / ({whole} > 0)"


def quantile(q: float, name: str, by: str = "", extra: str = "") -> str:
    """Return a quantile of a histogram of pipelines, by labels."""
    return _quantile(q, of_pipeline(f"{name}_bucket", extra), by)


def quantile_of_process(q: float, name: str, by: str = "") -> str:
    """Return a quantile of a histogram of processes, by labels."""
    return _quantile(q, of_process(f"{name}_bucket"), by)


def mean(name: str, by: str = "") -> str:
    """Return the mean of a histogram of pipelines, by labels."""
    return ratio(rate(of_pipeline(f"{name}_sum"), by), rate(of_pipeline(f"{name}_count"), by))


def buckets(name: str) -> str:
    """Return the counts of a histogram's buckets, for a heatmap."""
    return increase(of_pipeline(f"{name}_bucket"), "le")


def rate_of_each(selector: str, by: str, whole: str) -> str:
    """Return the growth of a counter in a second, by labels, as shares of one number that has no labels."""
    return f"{rate(selector, by)} / on () group_left () ({whole} > 0)"


def dead_share(by: str = "") -> str:
    """Return which share of the records that are done died."""
    dead, scored = (rate(of_pipeline(name), by) for name in ("records_dead_lettered_total", "records_scored_total"))
    return ratio(dead, f"({dead} + {scored})")


def queue_fill(unit: str, by: str) -> str:
    """Return how full the fullest queue is, in `records` or `bytes`."""
    return total(f"{of_pipeline(f'queue_{unit}')} / {of_pipeline(f'queue_capacity_{unit}')}", by, function="max")


def stage_use(by: str) -> str:
    """Return the share of its workers' time that a stage takes; `by` holds `stage`."""
    return ratio(rate(of_pipeline("stage_busy_seconds_total"), by), total(of_pipeline("stage_workers"), by))


def worker_use(by: str) -> str:
    """Return the share of their time that workers were busy with any stage; `by` holds no `stage`."""
    # Workers are shared by the stages, so their number comes once a process.
    workers = total(of_pipeline("stage_workers", 'stage!="sink"'), f"{by}, job, instance", function="max")
    return ratio(rate(of_pipeline("stage_busy_seconds_total", 'stage!="sink"'), by), total(workers, by))


def _quantile(q: float, selector: str, by: str) -> str:
    return f"histogram_quantile({q}, {rate(selector, _joined('le', by, ', '))}) >= 0"


def _joined(first: str, second: str, separator: str = ",") -> str:
    return f"{first}{separator}{second}" if second else first
