"""BPO: negatives from the model's own bias; right answers are the positives (Pi et al. 2024, arXiv:2403.08730).

Notable: one negative is what the model says of a picture weakened by noise, so that its language prior speaks; the
other is the right answer with errors injected. Every two answers with different scores are a pair. The released
sampler steers away from the prior; the paper's intent, towards it, is what is built here.
"""

from quintet.data.template import Template
from quintet.recipes._method import Method, lora_on_llm
from quintet.recipes._recipe import Paper
from quintet.training.objectives.preference import Preference
from quintet.training.stage import Data, Stage


def method(template: Template) -> Method:
    """DPO against the prior."""
    return Method(
        stages=(
            Stage(
                name="dpo",
                data=Data(name="BPO_Instruct", kind="preferences", rows=167000, pairs="biased"),
                template=template,
                train=lora_on_llm(2e-6, rank=32, alpha=256),
                batch=32,
                epochs=2.0,
                objective="preference",
                preference=Preference(),
            ),
        ),
        paper=Paper(
            title="Strengthening Multimodal Large Language Model with Bootstrapped Preference Optimization",
            authors="Pi et al.",
            year=2024,
            arxiv="2403.08730",
        ),
    )
