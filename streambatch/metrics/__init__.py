"""Turns what a pipeline tells its observer into Prometheus metrics; the pipeline itself knows nothing of them."""

from streambatch.metrics.catalogue import CATALOGUE, Metric
from streambatch.metrics.collector import Metrics, Observed, sample_loop_lag
from streambatch.metrics.observer import MetricsObserver

__all__ = ["CATALOGUE", "Metric", "Metrics", "MetricsObserver", "Observed", "sample_loop_lag"]
