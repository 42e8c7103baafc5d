"""What is minimised: functions of (model, batch, extra) that return a sum, a count, and sums to report."""

from collections.abc import Callable, Mapping

from quintet.training.objectives.align import align
from quintet.training.objectives.lm import lm
from quintet.training.objectives.policy import counted, policy
from quintet.training.objectives.preference import count, preference
from quintet.training.objectives.prompts import prompts
from quintet.training.objectives.reward import reward
from quintet.values import Batch

__all__ = ["CONTRASTIVE", "COUNTS", "OBJECTIVES"]

OBJECTIVES = {
    "lm": lm,
    "align": align,
    "prompts": prompts,
    "preference": preference,
    "reward": reward,
    "policy": policy,
}
"""Stage.objective → function."""
CONTRASTIVE = ("align", "prompts")
"""Those that tell samples from each other: one alone teaches them nothing."""
COUNTS: Mapping[str, Callable[[Batch], float]] = {
    **{name: lambda batch: batch.targets.count for name in ("lm", "align", "prompts")},
    "preference": count,
    "reward": count,
    "policy": counted,
}
"""Stage.objective → what a batch counts in a step, by which the step's sum is divided."""
