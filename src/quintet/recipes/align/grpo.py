"""GRPO: of several answers to one prompt the better ones gain, by rewards that can be checked (Shao et al. 2024).

Notable: no value model; an answer's advantage is its reward against the group's, in standard deviations; the KL to the
reference is a term of the loss (k3, 0.04). The answers of a group are branches of one tree: the picture is encoded and
the prompt read once for all of them, when they are drawn and when they are learnt from.
"""

from quintet.data.template import Template
from quintet.recipes._method import Method, lora_on_llm
from quintet.recipes._recipe import Paper
from quintet.training.objectives.policy import Policy
from quintet.training.rollout import Rollouts
from quintet.training.stage import Data, Stage


def method(template: Template) -> Method:
    """Group-relative policy optimisation on questions whose answers are known."""
    return Method(
        stages=(
            Stage(
                name="grpo",
                data=Data(name="questions with answers", kind="preferences", pairs="questions"),
                template=template,
                train=lora_on_llm(1e-6, rank=64, alpha=128),
                batch=64,
                schedule="constant",
                objective="policy",
                policy=Policy(kl=0.04),
                rollouts=Rollouts(prompts=64, group=8),
            ),
        ),
        paper=Paper(
            title="DeepSeekMath: Pushing the Limits of Mathematical Reasoning in Open Language Models",
            authors="Shao et al.",
            year=2024,
            arxiv="2402.03300",
        ),
    )
