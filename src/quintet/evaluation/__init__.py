"""Evaluation: tasks (data, metric, version), the controls beside every score, and what is written of a run."""
