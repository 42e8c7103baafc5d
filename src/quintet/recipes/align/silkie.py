"""Silkie: answers of many models, rated by a judge in three aspects (Li et al. 2023, arXiv:2312.10665).

Notable: an answer's score is the plain mean of helpfulness, visual faithfulness and ethics; every two answers of a
prompt with different scores are a pair, up to six from four answers, and here one tree. The released adapters drop
0.05 of their inputs, these none: the reference has no adapters, and dropout would stand in every comparison with it.
"""

from quintet.data.template import Template
from quintet.recipes._method import Method, lora_on_llm
from quintet.recipes._recipe import Paper
from quintet.training.objectives.preference import Preference
from quintet.training.stage import Data, Stage


def method(template: Template) -> Method:
    """DPO on rated answers."""
    return Method(
        stages=(
            Stage(
                name="dpo",
                data=Data(name="VLFeedback", kind="preferences", rows=80258, pairs="rated"),
                template=template,
                train=lora_on_llm(1e-5, rank=64, alpha=16),
                batch=256,
                epochs=3.0,
                warmup=0.1,
                weight_decay=0.05,
                betas=(0.9, 0.98),
                objective="preference",
                preference=Preference(),
            ),
        ),
        paper=Paper(
            title="Silkie: Preference Distillation for Large Visual Language Models",
            authors="Li et al.",
            year=2023,
            arxiv="2312.10665",
        ),
    )
