"""POVID: injected errors, then those that noise on the picture makes (Zhou et al. 2024, arXiv:2402.11411).

Notable: the first stage is DPO against answers with injected errors. The second also lowers, token by token, what the
model would say next were the picture noisy (step 500 of 1,000 of a diffusion): a second tree in the row shows the
noisy picture, and the words that are likeliest there are scored about the clean one. Two sigmoids are averaged, as in
the released code; the paper's one is `--set 'stages.noise.preference.terms={"noisy_joint": 1}'`. Noise is cut off at
black and white, which the code lets wrap around; the code's trained projector would change the reference, so only
adapters learn here.
"""

from quintet.data.contrast import Contrast
from quintet.data.template import Template
from quintet.recipes._method import Method, lora_on_llm
from quintet.recipes._recipe import Paper
from quintet.training.objectives.preference import Preference
from quintet.training.stage import Data, Stage


def method(template: Template) -> Method:
    """DPO on text, then on text and noise."""
    return Method(
        stages=(
            Stage(
                name="text",
                data=Data(name="POVID_preference_data_for_VLLMs", kind="preferences", rows=17000, pairs="injected"),
                template=template,
                train=lora_on_llm(1e-7, rank=128, alpha=256),
                batch=16,
                epochs=3.0,
                objective="preference",
                preference=Preference(),
            ),
            Stage(
                name="noise",
                data=Data(name="POVID_preference_data_for_VLLMs", kind="preferences", rows=17000, pairs="injected"),
                template=template,
                train=lora_on_llm(1e-7, rank=128, alpha=256),
                batch=16,
                contrast=Contrast(how="noise", step=500),
                objective="preference",
                preference=Preference(terms={"sigmoid": 0.5, "noisy": 0.5}),
            ),
        ),
        paper=Paper(
            title="Aligning Modalities in Vision Large Language Models via Preference Fine-tuning",
            authors="Zhou et al.",
            year=2024,
            arxiv="2402.11411",
        ),
    )
