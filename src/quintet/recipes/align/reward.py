"""A reward model: which of two answers is better, read off their last token (Ouyang et al. 2022, arXiv:2203.02155).

Notable: a linear head of one number on the LLM, its bias 0; pairs of the model's own answers. Behind each answer its
quality is asked for, by four criteria, and the first has the facts of the picture, as in LLaVA-RLHF: Scenes' truth, or
captions (`--facts FILE`). `--set stages.reward.reward.facts=false` asks without facts; with `…asked=false`, too, it is
an ordinary reward model.
"""

from collections.abc import Mapping

from quintet.data.template import Template
from quintet.recipes._method import Method, lora_on_llm
from quintet.recipes._recipe import Paper
from quintet.training.objectives.reward import Reward
from quintet.training.stage import Data, Rate, Stage


def method(template: Template) -> Method:
    """A reward model with adapters and a head."""
    train: Mapping[str, Rate] = {**lora_on_llm(2e-5, rank=64, alpha=16), "score": Rate(lr=2e-5)}
    return Method(
        stages=(
            Stage(
                name="reward",
                data=Data(name="LLaVA-Human-Preference-10K", kind="preferences", rows=9_422, pairs="preferred"),
                template=template,
                train=train,
                batch=32,
                schedule="constant",
                objective="reward",
                reward=Reward(centering=1e-3, center="mean", asked=True, facts=True),
            ),
        ),
        paper=Paper(
            title="Aligning Large Multimodal Models with Factually Augmented RLHF",
            authors="Sun et al.",
            year=2023,
            arxiv="2309.14525",
        ),
    )
