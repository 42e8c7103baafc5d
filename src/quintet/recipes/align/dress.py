"""DRESS: answers are learnt under their own feedback, good ones and bad ones (Chen et al. 2023, arXiv:2311.10081).

Notable: conditional training instead of preferences; the rating and the critique of an answer stand behind its
question, so a bad answer teaches what a bad answer is; a refinement is a further turn whose answer is the improved one.
The model that comes out is asked for the best: " Rating 4. All of it is there." stands behind every question in its
template, in chat and in what is measured after. It is spelt in one place for public files, for pairs of ours and for
that question (`quintet.data.sources.preference_scores.condition`). Only the abstract and the data are public: the
objective is supervised, by memory. VLSafe, the set for harmlessness, has no answers to learn from and is not read.
"""

from quintet.data.sources.preference_scores import PRAISE, condition
from quintet.data.template import Template
from quintet.recipes._method import Method, lora_on_llm
from quintet.recipes._recipe import Paper
from quintet.training.stage import Data, Stage


def method(template: Template) -> Method:
    """Conditional supervised training on feedback."""
    return Method(
        stages=(
            Stage(
                name="feedback",
                data=Data(name="LVLM_NLF", kind="instructions", rows=63_000, pairs="feedback"),
                template=template,
                train=lora_on_llm(2e-5, rank=16, alpha=32),
                batch=32,
            ),
        ),
        asks=condition(4, PRAISE),
        paper=Paper(
            title="DRESS: Instructing Large Vision-Language Models to Align and Interact with Humans via Natural "
            "Language Feedback",
            authors="Chen et al.",
            year=2023,
            arxiv="2311.10081",
        ),
    )
