"""DPO: of two answers the better one shall gain on the other (Rafailov et al. 2023, arXiv:2305.18290).

Notable: no reward model, no sampling; the reference is the model itself before, with its adapters off. Settings are
those of common libraries (β 0.1). Its siblings are other `terms` of the same stage: `--set
'stages.dpo.preference.terms={"ipo": 1}'`, and hinge, bco_pair, kto_pair (at the same β), robust (with `smoothing`),
odds with nll (ORPO), sigmoid with nll (RPO), `{"sigmoid": 0.8, "bco_pair": 0.2, "nll": 1}` (MPO). SimPO's means over
tokens want a larger β than DPO's sums, which the defaults here are for, and a margin γ: with simpo add
`--set stages.dpo.preference.beta=2 --set stages.dpo.preference.margin=1` (its paper's β is 2 to 2.5).
"""

from quintet.data.template import Template
from quintet.recipes._method import Method, lora_on_llm
from quintet.recipes._recipe import Paper
from quintet.training.objectives.preference import Preference
from quintet.training.stage import Data, Stage


def method(template: Template) -> Method:
    """Direct preference optimisation with adapters."""
    return Method(
        stages=(
            Stage(
                name="dpo",
                data=Data(name="pairs of your own", kind="preferences", pairs="truth"),
                template=template,
                train=lora_on_llm(1e-5, rank=16, alpha=32),
                batch=32,
                warmup=0.1,
                objective="preference",
                preference=Preference(),
            ),
        ),
        paper=Paper(
            title="Direct Preference Optimization: Your Language Model is Secretly a Reward Model",
            authors="Rafailov et al.",
            year=2023,
            arxiv="2305.18290",
        ),
    )
