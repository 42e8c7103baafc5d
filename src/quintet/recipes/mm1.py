"""MM1: how large pictures are matters, and how many features (McKinzie et al. 2024, arXiv:2403.09611).

Notable: the paper's finding, that of resolution, number of features and kind of connector the last hardly matters; so
the connector is one word of this recipe (`Abstractor` and `Resampler` give 144 features too, average pooling 81).
Interleaved pages are learnt word by word, 45 % of the data, captions 45 %, text 10 %; everything trains in both stages.
The peak rate follows a law of the LLM's size N, exp(−0.4214 ln N − 0.5535): 4e-5 for 7B.

The finding is not reproduced here: nothing measures kinds of connectors, sizes of pictures and numbers of features
beside each other. Nothing was released. The encoder is the public one most like it, the LLM stands in for an
unpublished one of 7B, the inside of the C-Abstractor is Honeybee's and the templates are ours. Fine-tuning at 1344 px
by four crops and an overview is not here (`llava_next` has views). Fine-tuning is by AdaFactor in the paper, by AdamW
here. Its weight decay is 0.1 η of a weight a step, which in AdamW, where the rate η multiplies it, is 0.1.
"""

from math import exp, log

from quintet.components.connectors.abstractor import CAbstractor
from quintet.components.encoders.presets import DFN_H_378
from quintet.components.presets_llm import LLAMA_7B
from quintet.data.sources.pages import Pages
from quintet.model.mllm import MLLM
from quintet.recipes._recipe import Paper, Recipe
from quintet.recipes._templates import INTERLEAVED, VICUNA_V1
from quintet.training.stage import Data, Rate, Stage


def peak_rate(parameters: float) -> float:
    """The best peak rate for an LLM of so many parameters (section 3.3 of the paper).

    >>> [f"{peak_rate(n):.0e}" for n in (3e9, 7e9, 30e9)]
    ['6e-05', '4e-05', '2e-05']
    """
    return exp(-0.4214 * log(parameters) - 0.5535)


def recipe() -> Recipe:
    """MM1-7B."""
    rate = peak_rate(7e9)
    everything = ("encoders", "connectors", "llm")
    return Recipe(
        model=MLLM.Config(
            encoders={"image": DFN_H_378.at(layer=-1)},
            connectors={"image": CAbstractor.Config()},
            llm=LLAMA_7B,
        ),
        stages=(
            Stage(
                name="pretrain",
                data=Data(
                    name="interleaved-captions-text", kind="interleaved", mixed={"text": 0.1}, pages=Pages(pictures=16)
                ),
                template=INTERLEAVED,
                train={part: Rate(lr=rate) for part in everything},
                batch=512,
                steps=200_000,
                warmup=2_000 / 200_000,
                final=0.1,
                weight_decay=0.1,
                row=4096,
            ),
            Stage(
                name="instruct",
                data=Data(name="mm1-sft-1.45m", kind="instructions", rows=1_450_000),
                template=VICUNA_V1,
                train={part: Rate(lr=1e-5) for part in everything},
                batch=256,
                steps=10_000,
            ),
        ),
        paper=Paper(
            title="MM1: Methods, Analysis & Insights from Multimodal LLM Pre-training",
            authors="McKinzie et al.",
            year=2024,
            arxiv="2403.09611",
            derived={
                "connectors.image": "38,514,240: Honeybee's six blocks of 1024 channels, the first from 1280, "
                "and its MLP",
            },
            tokens={"image": 144},
        ),
    )
