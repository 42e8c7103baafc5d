"""RLAIF-V: its own answers, judged claim by claim by an open model, in rounds (Yu et al. 2024, arXiv:2405.17220).

Notable: ten answers a prompt at temperature 0.7 differ in nothing but chance; each is split into claims (sentences: one
of Scenes claims one thing), and each claim asked as a yes-or-no question. It is refused where the judge (`--judge RUN`)
finds yes no likelier than no as its next word. An answer's score is minus the number of refused claims; at most two
pairs a prompt; pairs whose rejected answer is longer are dropped until both sides are as long. Each of the four rounds
samples from the model that the round before made. The public script has one round of 2,672 steps.
"""

from quintet.data.template import Template
from quintet.recipes._method import Method
from quintet.recipes._recipe import Paper
from quintet.training.objectives.preference import Preference
from quintet.training.stage import Data, Rate, Stage

ROUNDS = 4


def method(template: Template) -> Method:
    """Four rounds of DPO on pairs of its own."""
    return Method(
        stages=tuple(
            Stage(
                name=f"round{n}",
                data=Data(name="RLAIF-V-Dataset", kind="preferences", rows=83_132, pairs="claims"),
                template=template,
                train={"connectors": Rate(lr=5e-7), "llm": Rate(lr=5e-7)},
                batch=8,
                epochs=4.0,
                warmup=0.05,
                weight_decay=0.01,
                objective="preference",
                preference=Preference(),
            )
            for n in range(1, ROUNDS + 1)
        ),
        paper=Paper(
            title="RLAIF-V: Open-Source AI Feedback Leads to Super GPT-4V Trustworthiness",
            authors="Yu et al.",
            year=2024,
            arxiv="2405.17220",
        ),
    )
