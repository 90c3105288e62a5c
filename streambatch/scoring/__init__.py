"""Scoring a batch: preprocess steps, models, the transform that joins them, and the executors that run it."""
