"""mDPO: the same answer about a piece of the picture is a third to compare with (Wang et al. 2024, arXiv:2406.11839).

Notable: plain DPO can learn from the words alone; the conditional term asks that the chosen answer fits its picture
better than a crop of 1 to 20 % of it, and the anchor keeps the chosen answer from becoming less likely. Of several
ranked answers each that wins is compared with itself. The crop is drawn once a sample; the released code draws it anew
for policy and reference.
"""

from quintet.data.contrast import Contrast
from quintet.data.template import Template
from quintet.recipes._method import Method, lora_on_llm
from quintet.recipes._recipe import Paper
from quintet.training.objectives.preference import Preference
from quintet.training.stage import Data, Stage


def method(template: Template) -> Method:
    """DPO with a conditional and an anchor term."""
    return Method(
        stages=(
            Stage(
                name="mdpo",
                data=Data(name="mDPO-preference-data", kind="preferences", rows=10000, pairs="rated"),
                template=template,
                train=lora_on_llm(1e-5, rank=64, alpha=128),
                batch=32,
                epochs=3.0,
                warmup=0.1,
                weight_decay=0.05,
                contrast=Contrast(how="crop", area=(0.01, 0.2)),
                objective="preference",
                preference=Preference(terms={"sigmoid": 1.0, "unseen": 1.0, "anchor": 1.0}),
            ),
        ),
        paper=Paper(
            title="mDPO: Conditional Preference Optimization for Multimodal Large Language Models",
            authors="Wang et al.",
            year=2024,
            arxiv="2406.11839",
        ),
    )
