"""Metrics, logs, traces and drift, made from the events and snapshots of a pipeline, which knows none of them."""

from streambatch.observe.catalogue import CATALOGUE, Metric
from streambatch.observe.collector import Metrics, Observed, sample_loop_lag
from streambatch.observe.observer import MetricsObserver

__all__ = ["CATALOGUE", "Metric", "Metrics", "MetricsObserver", "Observed", "sample_loop_lag"]
