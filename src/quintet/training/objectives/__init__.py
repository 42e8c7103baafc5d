"""What is minimised: functions of (model, batch) that return a sum and a count."""

from quintet.training.objectives.lm import lm

__all__ = ["OBJECTIVES"]

OBJECTIVES = {"lm": lm}
"""Stage.objective → function."""
