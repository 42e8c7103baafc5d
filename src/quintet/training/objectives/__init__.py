"""What is minimised: functions of (model, batch, extra) that return a sum, a count, and sums to report."""

from quintet.training.objectives.lm import lm

__all__ = ["OBJECTIVES"]

OBJECTIVES = {"lm": lm}
"""Stage.objective → function."""
