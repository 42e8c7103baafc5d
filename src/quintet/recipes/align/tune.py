"""Tuning that goes on: the next tokens of more conversations, as the last stage of most systems (no paper of its own).

What alignment methods are compared with: the same rows, as many steps, no comparison.
"""

from quintet.data.template import Template
from quintet.recipes._method import Method
from quintet.recipes._recipe import Paper
from quintet.training.stage import Data, Rate, Stage


def method(template: Template) -> Method:
    """Supervised tuning of connector and LLM."""
    return Method(
        stages=(
            Stage(
                name="tune",
                data=Data(name="conversations of your own", kind="instructions", pairs="descriptions"),
                template=template,
                train={"connectors": Rate(lr=2e-5), "llm": Rate(lr=2e-5)},
                batch=128,
            ),
        ),
        paper=Paper(
            title="Visual Instruction Tuning",
            authors="Liu et al.",
            year=2023,
            arxiv="2304.08485",
        ),
    )
