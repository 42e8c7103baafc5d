"""Metrics, one a file: each turns outputs and truths into one row of sums an item (see `metric.py`)."""
