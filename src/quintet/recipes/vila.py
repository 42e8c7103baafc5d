"""VILA: the LLM itself learns from interleaved pictures and words before it is instructed (Lin et al. 2023).

Notable: in the second of three stages the LLM trains, on documents in which pictures stand anywhere between the words
and every word is learnt; in the third, text-only instructions are mixed into the batches, which brings back what the
second cost in text ("joint SFT"). arXiv:2312.07533.

The paper's connector is one linear layer and its LLM Llama 2; the released weights have LLaVA-1.5's two layers and
Vicuna: `Mlp.Config(depth=2)` and `VICUNA_7B` for those.
"""

from quintet.components.connectors.linear import Linear
from quintet.components.encoders.presets import CLIP_L_336
from quintet.components.fusion.token import TokenFusion
from quintet.components.presets_llm import LLAMA2_7B
from quintet.model.mllm import MLLM
from quintet.recipes._recipe import Paper, Recipe
from quintet.recipes._templates import INTERLEAVED, PLAIN, VICUNA_V1
from quintet.training.stage import Data, Rate, Stage


def recipe() -> Recipe:
    """VILA-7B."""
    return Recipe(
        model=MLLM.Config(
            encoders={"image": CLIP_L_336.at(layer=-2, select="patch", fit="pad")},
            connectors={"image": Linear.Config()},
            fusion=TokenFusion.Config(),
            llm=LLAMA2_7B,
        ),
        stages=(
            Stage(
                name="align",
                data=Data(name="lcs-558k", kind="captions", rows=558_128),
                template=PLAIN,
                train={"connectors": Rate(lr=1e-3)},
                batch=256,
            ),
            Stage(
                name="interleaved",
                data=Data(name="mmc4-core-25m+coyo-25m", kind="interleaved", rows=50_000_000),
                template=INTERLEAVED,
                train={"connectors": Rate(lr=5e-5), "llm": Rate(lr=5e-5)},
                batch=1024,
                row=4096,
            ),
            Stage(
                name="joint",
                data=Data(name="llava-v1.5-blend+flan-1m-text", kind="instructions", mixed={"text": 0.6}),
                template=VICUNA_V1,
                train={"connectors": Rate(lr=2e-5), "llm": Rate(lr=2e-5)},
                batch=128,
                row=4096,
            ),
        ),
        paper=Paper(
            title="VILA: On Pre-training for Visual Language Models",
            authors="Lin et al.",
            year=2023,
            arxiv="2312.07533",
            derived={"connectors.image": "1024 · 4096 + 4096"},
            tokens={"image": 576},
        ),
    )
