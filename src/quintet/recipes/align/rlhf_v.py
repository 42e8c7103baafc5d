"""RLHF-V: a person corrects what an answer makes up; corrected tokens count more (Yu et al. 2023, arXiv:2312.00849).

Notable: DDPO; an answer's score is the weighted mean of its tokens' log-probabilities, γ for tokens in which the two
answers differ and 1 for the rest, so a row has two answers; all weights learn, so the reference is computed before.
The released script differs from the paper: β 0.1, γ 1.1, and no division (`--set stages.ddpo.preference.beta=0.1
…gamma=1.1 …average=false`). The paper's 7 epochs of 1.4 K pairs.
"""

from quintet.data.template import Template
from quintet.recipes._method import Method
from quintet.recipes._recipe import Paper
from quintet.training.objectives.preference import Preference
from quintet.training.stage import Data, Rate, Stage


def method(template: Template) -> Method:
    """Dense direct preference optimisation on corrections."""
    return Method(
        stages=(
            Stage(
                name="ddpo",
                data=Data(name="RLHF-V-Dataset", kind="preferences", rows=5733, pairs="corrected"),
                template=template,
                train={"connectors": Rate(lr=5e-7), "llm": Rate(lr=5e-7)},
                batch=32,
                epochs=7.0,
                differences=True,
                objective="preference",
                preference=Preference(beta=0.5, gamma=5.0, average=True),
            ),
        ),
        paper=Paper(
            title="RLHF-V: Towards Trustworthy MLLMs via Behavior Alignment from Fine-grained Correctional Human "
            "Feedback",
            authors="Yu et al.",
            year=2023,
            arxiv="2312.00849",
        ),
    )
