"""HALVA: right phrases against those put in their place, and a KL (Sarkar et al. 2024, arXiv:2405.18654).

Notable: no reference and no β in the contrast, which looks at the swapped phrases alone; KL(π_ref ‖ π) over the whole
vocabulary on other conversations keeps the model what it was, α 0.4 for 7 B (0.5 for 13 B). Those conversations stand
in the rows' key `kept`; both terms are divided by the number of pairs, so α is the paper's with one beside each pair,
and with r of them for every pair (0.5: beside every other one) `kl` is α / r. Phrases without a counterpart are masked;
the released batches pad them with pairs that add ln 2.
"""

from quintet.data.template import Template
from quintet.recipes._method import Method, lora_on_llm
from quintet.recipes._recipe import Paper
from quintet.training.objectives.preference import Preference
from quintet.training.stage import Data, Stage


def method(template: Template) -> Method:
    """Phrase-level contrast with KL."""
    return Method(
        stages=(
            Stage(
                name="phrases",
                data=Data(name="HALVA, Visual Genome", kind="preferences", rows=21500, pairs="phrases"),
                template=template,
                train=lora_on_llm(5e-6, rank=128, alpha=256),
                batch=64,
                objective="preference",
                preference=Preference(terms={"phrases": 1.0, "kl": 0.4}),
            ),
        ),
        paper=Paper(
            title="Mitigating Object Hallucination in MLLMs via Data-augmented Phrase-level Alignment",
            authors="Sarkar et al.",
            year=2024,
            arxiv="2405.18654",
        ),
    )
