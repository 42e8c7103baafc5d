"""HSA-DPO: hallucinations graded sentence by sentence weigh the pair (Xiao et al. 2024, arXiv:2404.14233).

Notable: the severity (of a sentence 0, minor 1, moderate 2, major 3; of an answer the mean over all its sentences)
multiplies the rejected log-ratio inside the sigmoid. The chosen log-ratio counts once; by its own score with
`--set stages.hsa.preference.won_weight=severity`. The pair is the raw answer of the model, and what is left when the
sentences that a detector finds wrong are rewritten. The detector is whoever judges: the exact truth, or a model or an
endpoint (`--judge`). The paper tunes one, on `hsa_dpo_detection.jsonl`, whose layout we do not know.
"""

from quintet.data.template import Template
from quintet.recipes._method import Method, lora_on_llm
from quintet.recipes._recipe import Paper
from quintet.training.objectives.preference import Preference
from quintet.training.stage import Data, Stage


def method(template: Template) -> Method:
    """DPO weighted by severity."""
    return Method(
        stages=(
            Stage(
                name="hsa",
                data=Data(name="hsa_dpo_preference_llava1dot5", kind="preferences", rows=8000, pairs="graded"),
                template=template,
                train=lora_on_llm(2e-6, rank=128, alpha=256),
                batch=16,
                epochs=2.0,
                objective="preference",
                preference=Preference(terms={"severity": 1.0}),
            ),
        ),
        paper=Paper(
            title="Detecting and Mitigating Hallucination in Large Vision Language Models via Fine-Grained AI Feedback",
            authors="Xiao et al.",
            year=2024,
            arxiv="2404.14233",
        ),
    )
