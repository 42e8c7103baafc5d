"""LLaVA-Hound: a judge reads a caption in the picture's place (Zhang et al. 2024, arXiv:2404.01258).

Notable: the caption is a proxy for the frames of a video, the judge reads it and sees nothing; chosen answers are
rated 4 or 5, rejected ones at most 3; the whole LLM learns and the projector is frozen. The code can add the chosen
answer's likelihood (γ, released as 0). Pairs of our own are of sequences of pictures; a file's row names its frames.
"""

from quintet.data.template import Template
from quintet.recipes._method import Method
from quintet.recipes._recipe import Paper
from quintet.training.objectives.preference import Preference
from quintet.training.stage import Data, Rate, Stage


def method(template: Template) -> Method:
    """DPO with captions as the judge's eyes."""
    return Method(
        stages=(
            Stage(
                name="dpo",
                data=Data(name="sft_dpo_17k", kind="preferences", rows=17000, pairs="proxy"),
                template=template,
                train={"llm": Rate(lr=5e-7)},
                batch=128,
                epochs=3.0,
                warmup=0.1,
                schedule="linear",
                row=4096,
                objective="preference",
                preference=Preference(),
            ),
        ),
        paper=Paper(
            title="Direct Preference Optimization of Video Large Multimodal Models from Language Model Reward",
            authors="Zhang et al.",
            year=2024,
            arxiv="2404.01258",
        ),
    )
