"""The admin port: metrics, health, status and config over HTTP, for people, probes and Prometheus.

Scoring requests never come here: they belong to sources.
"""
