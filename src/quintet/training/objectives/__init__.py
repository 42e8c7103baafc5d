"""What is minimised: functions of (model, batch, extra) that return a sum, a count, and sums to report."""

from quintet.training.objectives.align import align
from quintet.training.objectives.lm import lm
from quintet.training.objectives.prompts import prompts

__all__ = ["CONTRASTIVE", "OBJECTIVES"]

OBJECTIVES = {"lm": lm, "align": align, "prompts": prompts}
"""Stage.objective → function."""
CONTRASTIVE = ("align", "prompts")
"""Those that tell samples from each other: one alone teaches them nothing."""
