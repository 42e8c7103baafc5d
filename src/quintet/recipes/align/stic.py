"""STIC: the model makes its own pairs and its own descriptions, no labels (Deng et al. 2024, arXiv:2405.19716).

Notable: chosen answers follow a prompt that asks for care, rejected ones a prompt that invites what is not there, or a
picture made worse; both are then answers to the plain prompt about the clean picture. 1/1024 of the chosen answer's
negative log-likelihood, summed over its tokens, is added, as released. The second stage is instruction tuning in which
the model's own description stands before the question.
"""

from quintet.data.template import Template
from quintet.recipes._method import Method, lora_on_llm
from quintet.recipes._recipe import Paper
from quintet.training.objectives.preference import Preference
from quintet.training.stage import Data, Stage


def method(template: Template) -> Method:
    """Self-training in two stages."""
    return Method(
        stages=(
            Stage(
                name="pairs",
                data=Data(name="self-made, COCO train2014", kind="preferences", rows=6000, pairs="imagined"),
                template=template,
                train=lora_on_llm(1e-7, rank=128, alpha=256),
                batch=8,
                objective="preference",
                preference=Preference(terms={"sigmoid": 1.0, "nll_sum": 1 / 1024}),
            ),
            Stage(
                name="infused",
                data=Data(
                    name="instructions with descriptions of its own", kind="instructions", rows=5000, pairs="described"
                ),
                template=template,
                train=lora_on_llm(2e-5, rank=128, alpha=256),
                batch=16,
            ),
        ),
        paper=Paper(
            title="Enhancing Large Vision Language Models with Self-Training on Image Comprehension",
            authors="Deng et al.",
            year=2024,
            arxiv="2405.19716",
        ),
    )
