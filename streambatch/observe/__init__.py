"""Turns what a pipeline tells its observer into Prometheus metrics; the pipeline itself knows nothing of them."""

from streambatch.observe.catalogue import CATALOGUE, Metric
from streambatch.observe.collector import Metrics, Observed, sample_loop_lag
from streambatch.observe.observer import MetricsObserver

__all__ = ["CATALOGUE", "Metric", "Metrics", "MetricsObserver", "Observed", "sample_loop_lag"]
