"""RPO: DPO that keeps the chosen answers likely (Pang et al. 2024, arXiv:2404.19733).

Notable: DPO may make both answers less likely, the rejected one more so; the chosen answer's mean negative
log-likelihood beside it forbids that. On Scenes that term alone, without comparing, lowered hallucination as much
(docs/alignment.md).
"""

from dataclasses import replace

from quintet.data.template import Template
from quintet.recipes._method import Method
from quintet.recipes._recipe import Paper
from quintet.recipes.align import dpo
from quintet.training.objectives.preference import Preference


def method(template: Template) -> Method:
    """DPO with the chosen answer's likelihood."""
    stage = dpo.method(template).stages[0]
    return Method(
        stages=(replace(stage, name="rpo", preference=Preference(terms={"sigmoid": 1.0, "nll": 1.0})),),
        paper=Paper(
            title="Iterative Reasoning Preference Optimization",
            authors="Pang et al.",
            year=2024,
            arxiv="2404.19733",
        ),
    )
